"""Ranks of modules as PEFT's ``rank_pattern``, ``alpha_pattern`` and ``target_modules``."""

import math
import re
from collections.abc import Mapping
from typing import TypedDict

from qra_bo.utils.errors import SpaceError


class PeftPatterns(TypedDict):
    """Keyword arguments of ``peft.LoraConfig``; pattern keys are regular expressions that match one module each."""

    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    target_modules: list[str]
    r: int
    lora_alpha: float


def peft_patterns(ranks_by_module: Mapping[str, int], alpha_over_rank: float) -> PeftPatterns:
    """Translate one rank for every module into PEFT's patterns.

    >>> patterns = peft_patterns({"layers.0.q_proj": 4, "layers.0.k_proj": 0}, alpha_over_rank=2)
    >>> patterns["rank_pattern"], patterns["target_modules"], patterns["lora_alpha"]
    ({'layers\\\\.0\\\\.q_proj': 4}, ['layers.0.q_proj'], 8)

    PEFT matches ``(.*\\.)?(key)$`` and the first match wins, so names are escaped and one name may not be the
    tail of another. Both patterns name every adapted module, since a rank without its alpha is scaled wrongly.
    The default ``r`` is the largest rank: servers size their buffers by it, and with a constant alpha / r the
    scaling they derive from it is right for every module. Rank 0 leaves a module out of ``target_modules``.

    Args:
        ranks_by_module: Module path to rank (0 = no adapter), in module order.
        alpha_over_rank: LoRA's scaling alpha / r, the same for every module.

    Raises:
        SpaceError: If no module has an adapter, a rank is negative, the scaling is not a positive finite number,
            or one module's path is the tail of another's.
    """
    if not (math.isfinite(alpha_over_rank) and alpha_over_rank > 0):
        raise SpaceError(f"alpha / r must be a positive number, e.g. 2; got {alpha_over_rank}")
    wrong = {name: rank for name, rank in ranks_by_module.items() if rank < 0}
    if wrong:
        raise SpaceError(f"ranks must be at least 0; got {wrong}")
    ranks = {name: rank for name, rank in ranks_by_module.items() if rank > 0}
    if not ranks:
        raise SpaceError("an adapter needs at least one module of rank 1 or more; every rank given is 0")
    for name in ranks_by_module:
        tail = name
        while tail := tail.partition(".")[2]:
            if tail in ranks_by_module:
                raise SpaceError(f"PEFT can't distinguish the module {tail!r} from {name!r}: it matches names by their "
                                 "tail; give full module paths")
    largest = max(ranks.values())
    return PeftPatterns(
        rank_pattern={re.escape(name): rank for name, rank in ranks.items()},
        alpha_pattern={re.escape(name): _plain(rank * alpha_over_rank) for name, rank in ranks.items()},
        target_modules=list(ranks), r=largest, lora_alpha=_plain(largest * alpha_over_rank))


def _plain(value: float) -> float:
    """An integer where the value is one: PEFT declares alpha as an integer, and files read better so."""
    return int(value) if float(value).is_integer() else value
