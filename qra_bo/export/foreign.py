"""Checks of run folders of unknown origin: loading one runs no code, opens no file outside it and trusts no pattern."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from qra_bo.export.run import read_object
from qra_bo.finetune.manifest import Manifest
from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.errors import ModelError, OutputError
from qra_bo.utils.files import COPY_AGAIN

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TAKE_AGAIN = "take the adapter from the run again"
_OWN = frozenset({"rank_pattern", "alpha_pattern", "target_modules", "r", "lora_alpha"})
"""Fields of PEFT's configuration that a run sets, each checked against the ranks of its modules."""
_FREE = frozenset({"task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"})
"""Fields that change nothing here; all others have PEFT's defaults."""


def check_model_node(manifest: Manifest, folder: Path, trust_remote_code: bool) -> Mapping[str, Any]:
    """The base model that a manifest names, if it may be loaded.

    Raises:
        OutputError: If it names none.
        ModelError: If it needs code to run and the caller does not allow that.
    """
    node = manifest.model
    if not isinstance(node.get("source"), str) or not isinstance(node.get("name"), str):
        raise OutputError(f"the manifest in {folder} names no base model (its 'model' needs 'name' and 'source'); "
                          f"{COPY_AGAIN}")
    if node.get("trust_remote_code") and not trust_remote_code:
        raise ModelError(f"the run in {folder} asks to run code that comes with {node.get('path')!r} "
                         "(trust_remote_code); a run's folder is data and can't allow that itself. If you trust that "
                         "code, say so: qra_bo.load(run, trust_remote_code=True), or model.trust_remote_code=true in "
                         "a command")
    return {**node, "trust_remote_code": trust_remote_code and bool(node.get("trust_remote_code"))}


def check_adapter(folder: Path, manifest: Manifest, one_rank: bool = False) -> None:
    """Refuse an adapter unless its weights are safetensors and its configuration is the run's own for these modules.

    PEFT imports modules that a configuration names and compiles its patterns as regular expressions.

    Args:
        folder: Of the adapter.
        manifest: Of the run.
        one_rank: Whether it is the export without patterns.

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
    defaults = LoraConfig().to_dict()
    wrong = [*unlike_ranks(config, ranks, alphas, one_rank),
             *(key for key, value in config.items() if key not in _OWN | _FREE and value != defaults.get(key))]
    if wrong:
        raise OutputError(f"{path} is not the run's own for the modules in its manifest: it differs in "
                          f"{', '.join(sorted(wrong)[:5])}. It was changed, or belongs to another run; {TAKE_AGAIN}")


def unlike_ranks(found: Mapping[str, Any], ranks: Mapping[str, int], alphas: Mapping[str, float],
                 one_rank: bool = False) -> list[str]:
    """Fields of an adapter's configuration that differ from the ones a run writes for modules of these ranks.

    Args:
        found: Content of ``adapter_config.json``.
        ranks: Module path to rank, 0 where there is no adapter.
        alphas: Module path to alpha, of the adapted modules.
        one_rank: Whether it has no patterns, but the largest rank everywhere.

    Raises:
        SpaceError: If no run can have these ranks.
    """
    whole = peft_patterns(ranks, 1.0)
    wanted: dict[str, Any] = {
        "rank_pattern": {} if one_rank else whole["rank_pattern"],
        "alpha_pattern": {} if one_rank else {re.escape(name): alpha for name, alpha in alphas.items()},
        "r": whole["r"], "lora_alpha": alphas[max(alphas, key=lambda name: ranks[name])]}
    wrong = [key for key, value in wanted.items() if not _same(found.get(key), value)]
    return wrong if _targets(found.get("target_modules"), ranks) else [*wrong, "target_modules"]


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
