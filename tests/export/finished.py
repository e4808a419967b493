"""A really trained tiny run of a given allocation, as a search leaves it, without the search."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qra_bo.config import load_config
from qra_bo.export.registry import SMALL, export_all
from qra_bo.export.run import GGUF_FILES, FinishedRun
from qra_bo.finetune.manifest import PROBE
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.study.results import TRAINING
from tests.export.fixtures import best_json
from tests.finetune.models import final_options

MODEL = ("+model=tiny", "model.intermediate_size=192")
SETTINGS = [*MODEL, "data=tiny", "device=cpu", "dtype=bfloat16", "train.batch=2", "train.length=32",
            "eval.sequences=8", "data.max_records=64", "bits=[2,4,8,16]"]
"""Widths are multiples of 64: on some CPUs bitsandbytes' own kernel takes nothing else."""


LR_SCALE = 20.0


def finish(folder: Path, formats: Sequence[str], ranks: Sequence[int], *more: str, base: Path | None = None) -> Path:
    """Train ``formats`` and ``ranks`` (one of each a layer, of which the default base has 4) for a few steps and save
    what a run saves.

    ``more`` are further overrides of the configuration; ``base`` is the folder of another base model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS if base is None else ["+model=hf", f"model.path={base}", *SETTINGS[len(MODEL):]]
    config = load_config([*settings, *more, f"out={folder}"])
    oracle = make_oracle(config.to_dict(), str(folder))
    allocation = Allocation(tuple(formats), tuple(ranks))
    try:
        oracle.finalise(allocation=allocation.to_json(), options=final_options(steps=12), train_seed=1,  # type: ignore[attr-defined]
                        learning_rate=config.adapter.lr * LR_SCALE, out=str(folder), model_cfg=config.model,
                        progress=lambda what, done, total: None)
    finally:
        oracle.close()
    found = [parse_format(f) for f in formats]
    best = best_json(units=[f"model.layers.{i}" for i in range(len(formats))], bits=[f.bits for f in found],
                     ranks=list(ranks), formats=[asdict(f) for f in found], alpha_over_rank=2.0,
                     learning_rate=config.adapter.lr * LR_SCALE, lr_rule=config.adapter.lr_rule,
                     training={"trial_steps": 24, "steps": 12,
                               **{key: config.to_dict()["train"][key] for key in TRAINING}})
    (folder / "best.json").write_text(json.dumps(best))
    return folder


def exported(folder: Path, targets: Sequence[str] = SMALL, gguf: Sequence[str] = GGUF_FILES) -> list[Path]:
    """Read the folder of a finished run and write exports of it; return the files."""
    return export_all(FinishedRun.read(folder, gguf=gguf), targets)


def probe(model: Any, run: Path) -> torch.Tensor:
    """Return the logits that a model computes of the ids whose logits the run kept."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=load_file(run / PROBE)["input_ids"], use_cache=False).logits
    return found.float()
