"""``export/adapter_uniform_rank``: the adapter padded with zeros to its largest rank, the same function."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qra_bo.export.foreign import CONFIG, TAKE_AGAIN, WEIGHTS, unlike_ranks
from qra_bo.export.run import FinishedRun
from qra_bo.utils.errors import OutputError

FOLDER = "export/adapter_uniform_rank"
_MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def write(run: FinishedRun) -> list[Path]:
    """Write the adapter with the largest rank everywhere; returns the files.

    With a constant alpha / r the scaling stays as it was, and B A does not change: the added rows of A and columns
    of B are zero. Ranks are taken from the tensors alone, because they decide about the size of the files.

    Raises:
        OutputError: If the adapter's weights are missing, its configuration does not fit them, or alpha / r differs
            between modules.
    """
    source, target = run.adapter / WEIGHTS, run.folder / FOLDER
    if not source.is_file():
        raise OutputError(f"{source} is missing; an adapter of one rank is made from the adapter of a finished run")
    tensors, config = load_file(source), dict(run.adapter_config)
    ranks = _ranks(tensors)
    found = config["alpha_pattern"] if isinstance(config["alpha_pattern"], dict) else {}
    alphas = {name: found.get(re.escape(name)) for name in ranks}
    of_module = {name: alpha if isinstance(alpha, int | float) else math.nan for name, alpha in alphas.items()}
    wrong = unlike_ranks(config, ranks, of_module) if any(ranks.values()) else ["r"]
    if wrong:
        raise OutputError(f"{source.parent / CONFIG} does not fit the tensors beside it: it differs in "
                          f"{', '.join(sorted(wrong))}; {TAKE_AGAIN}")
    scales = {of_module[name] / rank for name, rank in ranks.items()}
    if max(scales) - min(scales) > 1e-9 * max(scales):
        raise OutputError(f"alpha / r differs between modules ({sorted(scales)}); one rank can't express that")
    rank = max(ranks.values())
    config.update(rank_pattern={}, alpha_pattern={})  # r and lora_alpha are those of the largest rank
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: _pad(name, weight, rank) for name, weight in tensors.items()}, target / WEIGHTS,
              metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [target / CONFIG, target / WEIGHTS]


def _ranks(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Module path to rank, from the shapes of the matrices; 0 where A and B disagree."""
    found: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is not None:
            rank = tensor.shape[0 if match[2] == "A" else 1] if tensor.ndim == 2 else 0
            found.setdefault(match[1], set()).add(rank)
    return {name: ranks.pop() if len(ranks) == 1 else 0 for name, ranks in found.items()}


def _pad(name: str, weight: torch.Tensor, rank: int) -> torch.Tensor:
    """A (``r x in``) gets rows, B (``out x r``) gets columns; other tensors stay."""
    missing = (0, 0, 0, rank - weight.shape[0]) if "lora_A" in name else \
        (0, rank - weight.shape[1]) if "lora_B" in name else ()
    return torch.nn.functional.pad(weight, missing).contiguous() if missing else weight
