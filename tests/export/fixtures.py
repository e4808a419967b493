"""The files of a finished run: two layers of two modules, bits 8 and 4, ranks 2 and 5."""

import json
from pathlib import Path
from typing import Any

from qra_bo.memory.formats import parse_format
from qra_bo.space.allocation import peft_patterns

UNITS = ["model.layers.0", "model.layers.1"]
MODULES = ("self_attn.q_proj", "mlp.down_proj")
BITS, RANKS = (8, 4), (2, 5)


def module_ranks() -> dict[str, int]:
    return {f"{unit}.{m}": r for unit, r in zip(UNITS, RANKS, strict=True) for m in MODULES}


def best_json(**changes: Any) -> dict[str, Any]:
    formats = [{"backend": "bitsandbytes", "bits": 8, "block": 0, "double_quant": False},
               {"backend": "bitsandbytes", "bits": 4, "block": 64, "double_quant": True}]
    return {"schema_version": 1, "model": "tiny", "granularity": "layer", "units": UNITS, "bits": list(BITS),
            "ranks": list(RANKS), "formats": formats, "alpha_over_rank": 2, "init": "kaiming", "oracle": "finetune",
            "searched": True, "winner_kind": "mixed", "loss": 4.01, "loss_se": .004, "metric": "test_loss",
            "search_loss": 4.02, "delivered": None, "prediction": None,
            "versus_best_simple": {"mean": -.012, "low": -.018, "high": -.006, "train_seeds": 5, "steps": 24},
            "versus_best_uniform": {"mean": -.012, "low": -.018, "high": -.006, "train_seeds": 5, "steps": 24},
            "objective": {"steps": 24, "trial_steps": 24, "confirmed_steps": 24, "predicted_beyond": 0.0},
            "memory": {"scope": "peak", "budget_bytes": 2_000_000, "predicted_bytes": 1_900_000,
                       "measured_bytes": 1_890_000, "breakdown": {}},
            "learning_rate": 2e-3, "lr_rule": "inverse_sqrt",
            "training": {"trial_steps": 24, "steps": 24,
                         "batch": 4, "accumulate": 2, "length": 128, "packing": "joined", "warmup": 0.1,
                         "lr_floor": 0.05, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8, "clip": 1.0,
                         "optimizer": "adamw", "checkpointing": False},
            "baselines": [{"name": "uniform-4bit-r16", "bits": 4, "ranks": 16, "loss": 4.13,
                           "predicted_bytes": 2_100_000, "feasible": False}],
            "provenance": {"version": "0.1.0", "packages": {"torch": "2.13"}}, **changes}


def manifest_json(ranks: dict[str, int], formats: dict[str, str],
                  shapes: dict[str, tuple[int, int]] | None = None) -> dict[str, Any]:
    from qra_bo.finetune.manifest import Manifest, ModuleRecord

    shapes = shapes or dict.fromkeys(formats, (7, 6))
    return Manifest({}, "float32", "cpu", {
        name: ModuleRecord(parse_format(fmt), shapes[name], ranks[name], 2.0 * ranks[name], "0" * 64)
        for name, fmt in formats.items()}, "0" * 64, "0" * 64, None, {}).to_json()


def write_finished(folder: Path, base: str = "org/tiny", **changes: Any) -> Path:
    """Write the files of a run whose adapter has random weights (``r x 6`` and ``7 x r``)."""
    import torch
    from safetensors.torch import save_file

    from qra_bo.finetune.manifest import adapter_digest, sealed

    (folder / "adapter").mkdir(parents=True)
    config = {"base_model_name_or_path": base, "peft_type": "LORA", "task_type": "CAUSAL_LM",
              **peft_patterns(module_ranks(), 2)}
    draw = torch.Generator().manual_seed(0)
    save_file({f"base_model.model.{name}.lora_{x}.weight": torch.randn(shape, generator=draw)
               for name, r in module_ranks().items() for x, shape in (("A", (r, 6)), ("B", (7, r)))},
              folder / "adapter" / "adapter_model.safetensors")
    manifest = manifest_json(module_ranks(), {f"{unit}.{m}": f"hqq{b}" for unit, b in zip(UNITS, BITS, strict=True)
                                              for m in MODULES})
    for name, content in (("best.json", best_json(**changes)), ("adapter/adapter_config.json", config),
                          ("quant_manifest.json", manifest)):
        (folder / name).write_text(json.dumps(content))
    manifest["adapter_sha256"] = adapter_digest(folder / "adapter")
    (folder / "quant_manifest.json").write_text(json.dumps(sealed(manifest)))
    return folder
