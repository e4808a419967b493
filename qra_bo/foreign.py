"""Run folders from strangers are data: loading one runs no code, opens no file outside it and trusts no pattern."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.errors import ModelError, OutputError
from qra_bo.files import strict_json
from qra_bo.oracle.manifest import COPY_AGAIN, Manifest
from qra_bo.space.patterns import peft_patterns

CONFIG = "adapter_config.json"
_FREE = frozenset({"rank_pattern", "alpha_pattern", "target_modules", "r", "lora_alpha", "task_type", "peft_type",
                   "peft_version", "base_model_name_or_path", "revision", "inference_mode"})
"""Fields of PEFT's configuration that a run sets, or that change nothing; all others have PEFT's defaults."""


def check_model_node(manifest: Manifest, folder: Path, trust_remote_code: bool) -> Mapping[str, Any]:
    """The base model that a manifest names, if it may be loaded.

    Raises:
        OutputError: If it names none.
        ModelError: If it wants code to run and the caller does not.
    """
    node = manifest.model
    if not isinstance(node.get("source"), str) or not isinstance(node.get("name"), str):
        raise OutputError(f"the manifest in {folder} names no base model (its 'model' needs 'name' and 'source'); "
                          f"{COPY_AGAIN}")
    if node.get("trust_remote_code") and not trust_remote_code:
        raise ModelError(f"the run in {folder} asks that code which comes with {node.get('path')!r} be run on this "
                         "machine (trust_remote_code); a run's folder is data, and that is not done on its word. If "
                         "you trust that code, say so: qra_bo.load(run, trust_remote_code=True), or "
                         "model.trust_remote_code=true in a command")
    return {**node, "trust_remote_code": trust_remote_code and bool(node.get("trust_remote_code"))}


def check_adapter_config(folder: Path, manifest: Manifest, one_rank: bool = False) -> None:
    """Refuse an adapter whose configuration is not the one that a run writes for these modules, or, with ``one_rank``,
    the export that has no patterns.

    PEFT imports modules that a configuration names and compiles its patterns as regular expressions.

    Raises:
        OutputError: If it can't be read, or differs.
    """
    from peft import LoraConfig

    path = folder / CONFIG
    try:
        found = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror}); an adapter needs it") from error
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error}); take the adapter from the run again") from error
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise OutputError(f"{path} must describe a LoRA adapter (peft_type LORA); it does not")
    records = manifest.modules
    scales = {float(r.alpha) / r.rank for r in records.values() if r.rank} or {1.0}
    whole = peft_patterns({name: r.rank for name, r in records.items()}, scales.pop())
    wanted: dict[str, Mapping[str, float]] = {"rank_pattern": {}, "alpha_pattern": {}} if one_rank else \
        {"rank_pattern": whole["rank_pattern"], "alpha_pattern": whole["alpha_pattern"]}
    defaults = LoraConfig().to_dict()
    wrong = [key for key, patterns in wanted.items() if found.get(key) != patterns]
    wrong += [key for key, value in found.items() if key not in _FREE and value != defaults.get(key)]
    if wrong:
        raise OutputError(f"{path} is not what a run writes for the modules in its manifest: it differs in "
                          f"{', '.join(sorted(wrong)[:5])}. It was changed, or belongs to another run; take the "
                          "adapter from the run again")
