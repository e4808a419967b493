"""An adapter of one rank: zero rows and columns fill every module up to the largest rank; the function is the same."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qra_bo.errors import OutputError
from qra_bo.export.run import FinishedRun

WEIGHTS = "adapter_model.safetensors"


def pad_adapter(run: FinishedRun, target: Path) -> list[Path]:
    """Write the adapter with the largest rank everywhere into ``target``; returns the files.

    With a constant alpha / r the scaling stays as it was, and B A does not change: the added rows of A and columns
    of B are zero.

    Raises:
        OutputError: If the adapter's weights are missing or alpha / r differs between modules.
    """
    source = run.folder / "adapter" / WEIGHTS
    if not source.is_file():
        raise OutputError(f"{source} is missing; an adapter of one rank is made from the adapter of a finished run")
    config = dict(run.adapter_config)
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    rank = max([int(config["r"]), *map(int, ranks.values())])
    scales = {alphas[k] / ranks[k] for k in ranks} | {config["lora_alpha"] / config["r"]}
    if len(scales) > 1:
        raise OutputError(f"alpha / r differs between modules ({sorted(scales)}); one rank can't express that")
    padded = {name: _pad(weight, rank, rows="lora_A" in name) if "lora_A" in name or "lora_B" in name else weight
              for name, weight in load_file(source).items()}
    config.update(r=rank, lora_alpha=rank * scales.pop(), rank_pattern={}, alpha_pattern={})
    target.mkdir(parents=True, exist_ok=True)
    save_file(padded, target / WEIGHTS, metadata={"format": "pt"})
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [target / "adapter_config.json", target / WEIGHTS]


def _pad(weight: torch.Tensor, rank: int, *, rows: bool) -> torch.Tensor:
    """A (``r x in``) gets rows, B (``out x r``) gets columns."""
    missing = rank - weight.shape[0 if rows else 1]
    return torch.nn.functional.pad(weight, (0, 0, 0, missing) if rows else (0, missing)).contiguous()
