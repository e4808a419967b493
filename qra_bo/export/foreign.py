"""Checks of run folders of unknown origin: loading one runs no code, compiles no pattern that no run writes, and
allocates nothing that its files do not bound."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from pydantic import StrictBool, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qra_bo.finetune.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest, adapter_digest
from qra_bo.space.allocation import peft_patterns
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.utils.errors import ModelError, OutputError
from qra_bo.utils.fields import Count, model_of, refusals
from qra_bo.utils.files import COPY_AGAIN, check_readable, read_object

TAKE_AGAIN = "take the adapter from the run again"
_SIZES = model_of(name=str, tied=StrictBool, n_layers=Count, hidden_size=Count, intermediate_size=Count, n_heads=Count,
                  n_kv_heads=Count, head_dim=Count, vocab_size=Count)
"""Numbers by which a manifest describes a base model of random weights."""
_FREE = frozenset({"task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"})
"""Fields of PEFT's configuration that change nothing here; those that a run does not set have PEFT's defaults."""


def read_adapter(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of a run's adapter by PEFT's names.

    Raises:
        OutputError: If they or its configuration can't be read, or are not those that the manifest states.
    """
    check_adapter(folder, manifest)
    path = folder / ADAPTER_WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
        found = adapter_digest(folder)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path} can't be read ({error}); {TAKE_AGAIN}") from error
    if found != manifest.adapter_sha256:
        raise OutputError(f"the adapter in {folder} does not have the checksum of the run's manifest: it is damaged or "
                          f"belongs to another run; {TAKE_AGAIN}")
    shapes = {f"base_model.model.{name}.lora_{key}.weight": shape
              for name, (rows, columns), rank in ((n, r.shape, r.rank) for n, r in manifest.modules.items() if r.rank)
              for key, shape in (("A", (rank, columns)), ("B", (rows, rank)))}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        wrong = next(n for n in (*shapes, *tensors) if n not in tensors or tuple(tensors[n].shape) != shapes.get(n))
        raise OutputError(f"{path} does not have the ranks of the manifest: {wrong} must be of shape "
                          f"{shapes.get(wrong, 'none')}; {TAKE_AGAIN}")
    return tensors


def check_adapter(folder: Path, manifest: Manifest, one_rank: bool = False) -> None:
    """Refuse an adapter unless its weights are in safetensors, and its configuration is the run's own.

    PEFT imports modules that a configuration names and compiles its patterns as regular expressions.

    Args:
        folder: Of the adapter.
        manifest: Of the run.
        one_rank: Whether it has no patterns, but the largest rank everywhere.

    Raises:
        OutputError: If it can't be read, differs, or has no weights in safetensors.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickles = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(suffix))
        found = f"only {', '.join(pickles)}, a pickle, which can run code when it is read" if pickles else "none"
        raise OutputError(f"{folder} must hold {ADAPTER_WEIGHTS}; found {found}")
    check_readable(folder / ADAPTER_WEIGHTS)
    path = folder / ADAPTER_CONFIG
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise OutputError(f"{path} must describe a LoRA adapter (peft_type LORA); it does not")
    ranks = {name: record.rank for name, record in manifest.modules.items()}
    wanted = peft_patterns(ranks, manifest.alpha_over_rank)
    wanted |= {"rank_pattern": {}, "alpha_pattern": {}} if one_rank else {}
    del wanted["target_modules"]
    defaults = LoraConfig().to_dict()
    wrong = [*(key for key, value in wanted.items() if not _same(config.get(key), value)),
             *(key for key, value in config.items()
               if key not in _FREE | {"target_modules", *wanted} and value != defaults.get(key)
               and (key, value) != ("target_parameters", []))]  # which PEFT writes for a mixture of experts
    if not _targets(config.get("target_modules"), ranks):
        wrong.append("target_modules")
    if wrong:
        raise OutputError(f"{path} is not the run's own for the modules in its manifest: it differs in "
                          f"{', '.join(sorted(wrong)[:5])}. It was changed, or belongs to another run; {TAKE_AGAIN}")


def check_random_base(manifest: Manifest) -> None:
    """Refuse a base model of random weights whose sizes are none, not those of the manifest's modules, or beyond this
    machine's memory. Nothing on disk bounds such a model. Raises ``OutputError`` with the sizes.
    """
    shapes = {name: record.shape for name, record in manifest.modules.items()}
    try:
        sizes = _SIZES.model_validate(dict(manifest.model)).model_dump()
        if sizes["n_layers"] > len(shapes):  # before they are listed
            raise ModelError(f"it has {sizes['n_layers']} layers, and the manifest {len(shapes)} modules")
        spec = spec_from_numbers(family="llama", **sizes)
    except (ValidationError, ModelError) as error:
        raise OutputError(f"the manifest describes its base model badly: {'; '.join(refusals(error))}; {COPY_AGAIN}"
                          ) from error
    if {linear.name: (linear.out_features, linear.in_features) for linear in spec.linears} != shapes:
        raise OutputError(f"the sizes of the base model in the manifest are not those of its modules; {COPY_AGAIN}")
    needed = 4 * (spec.linear_numel + spec.other_numel)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > physical:
        raise OutputError(f"the base model in the manifest takes {needed:,} bytes, and this machine has {physical:,} "
                          "bytes of memory: load the run on a larger one, if it is from a source that you trust")


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
