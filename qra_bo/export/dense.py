"""Helpers for exports in 16 bits."""

from pathlib import Path
from typing import Any

import torch

from qra_bo.finetune.manifest import Manifest


def half(manifest: Manifest) -> torch.dtype:
    """The 16-bit type nearest to the run's compute type."""
    return torch.float16 if manifest.compute_dtype == "float16" else torch.bfloat16


def packing_device(manifest: Manifest) -> str:
    """The device that packs as the run did, where this machine has it."""
    return "cuda" if manifest.packed_on == "cuda" and torch.cuda.is_available() else "cpu"


def save_dense(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model whose weights are dense, with its tokenizer.

    transformers marks a model read from a GGUF file as quantised, which keeps it from being saved: the mark is removed.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        del model.config.quantization_config
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
