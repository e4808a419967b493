"""Predicted peaks against those that the allocator reserves."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from bench.memory import gpu
from qra_bo.memory.model import TrainShape
from scripts.gpu_hour.stage import Stage

SMALL = (TrainShape(2, 48, True, optimizer="adamw_8bit", logits_chunk=32),)


def grid(stage: Stage) -> Iterator[dict[str, Any]]:
    """Train three steps of every tuple of ``bench.memory.gpu``."""
    if stage.device.type == "cuda":
        shapes = [replace(shape, device="cuda") for shape in gpu.SHAPES]
        spec = gpu.fitting(shapes, torch.cuda.mem_get_info(stage.device)[0])
    else:
        shapes, spec = list(SMALL), stage.spec(2)
    setting = os.environ.get("PYTORCH_ALLOC_CONF", "")
    for shape in shapes:
        for row in gpu.run(spec, [shape], stage.device):
            yield {**row, "allocator": setting}
