"""Checks of adapters of unknown origin: loading one runs no code and compiles no pattern that no run writes."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from qra_bo.export.run import read_object
from qra_bo.finetune.manifest import Manifest
from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.errors import OutputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TAKE_AGAIN = "take the adapter from the run again"
_FREE = frozenset({"task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"})
"""Fields of PEFT's configuration that change nothing here; those that a run does not set have PEFT's defaults."""


def check_adapter(folder: Path, manifest: Manifest, one_rank: bool = False) -> None:
    """Refuse an adapter unless its weights are safetensors and its configuration is the run's own for these modules.

    PEFT imports modules that a configuration names and compiles its patterns as regular expressions.

    Args:
        folder: Of the adapter.
        manifest: Of the run.
        one_rank: Whether it has no patterns, but the largest rank everywhere.

    Raises:
        OutputError: If it can't be read, differs, or has no weights in safetensors.
    """
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(suffix))
        found = f"only {', '.join(pickles)}, a pickle, which can run code when it is read" if pickles else "none"
        raise OutputError(f"{folder} must hold {WEIGHTS}; found {found}")
    path = folder / CONFIG
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise OutputError(f"{path} must describe a LoRA adapter (peft_type LORA); it does not")
    ranks = {name: record.rank for name, record in manifest.modules.items()}
    alphas = {name: record.alpha for name, record in manifest.modules.items() if record.rank}
    whole, defaults = peft_patterns(ranks, 1.0), LoraConfig().to_dict()
    wanted: dict[str, Any] = {
        "rank_pattern": {} if one_rank else whole["rank_pattern"],
        "alpha_pattern": {} if one_rank else {re.escape(name): alpha for name, alpha in alphas.items()},
        "r": whole["r"], "lora_alpha": alphas[max(alphas, key=lambda name: ranks[name])]}
    wrong = [*(key for key, value in wanted.items() if not _same(config.get(key), value)),
             *(key for key, value in config.items()
               if key not in _FREE | {"target_modules", *wanted} and value != defaults.get(key))]
    if not _targets(config.get("target_modules"), ranks):
        wrong.append("target_modules")
    if wrong:
        raise OutputError(f"{path} is not the run's own for the modules in its manifest: it differs in "
                          f"{', '.join(sorted(wrong)[:5])}. It was changed, or belongs to another run; {TAKE_AGAIN}")


def _same(found: Any, wanted: Any) -> bool:
    """Equality of numbers up to rounding (alpha comes from alpha / r); ``True`` is no number."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and found.keys() == wanted.keys() and all(_same(found[k], wanted[k])
                                                                                 for k in wanted)
    number = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e15
    return number and math.isclose(found, wanted, rel_tol=1e-9)


def _targets(found: Any, ranks: Mapping[str, int]) -> bool:
    """Whether it lists the adapted modules alone, by their names or, as PEFT shortens a long list, tails of them.

    A string in place of the list would be a regular expression.
    """
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return False
    tails, used = set(found), set()
    for name, rank in ranks.items():
        parts = name.split(".")
        matched = tails & {".".join(parts[i:]) for i in range(len(parts))}
        if bool(matched) != (rank > 0):
            return False
        used |= matched
    return used == tails
