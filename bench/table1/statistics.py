"""Paired comparisons between rows: the gap closed, and differences."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qra_bo.study.intervals import LEAST_SEEDS, LEVEL, paired_interval

Losses = Mapping[int, float]
"""Test loss by training seed."""
LEAST_RATIO = 3.0
"""Standard errors that QLoRA's gap must have before a share of it means anything."""


def shared(*losses: Losses) -> list[int]:
    """Training seeds that all have, in order."""
    return sorted(set.intersection(*(set(one) for one in losses)))


@dataclass(frozen=True, slots=True)
class GapClosed:
    """(QLoRA - row) / (QLoRA - LoRA-16) over the seeds that all three have.

    Args:
        share: 1 where the row reaches LoRA-16, or ``None`` where it is not resolved.
        low: Of the 95 % interval.
        high: Of it.
        note: Why it is not resolved, or empty.
    """

    share: float | None
    low: float | None
    high: float | None
    note: str = ""


def gap_closed(row: Losses, qlora: Losses, lora_16: Losses) -> GapClosed:
    """The share with an interval by linearisation: that of the residuals ``(QLoRA - row) - share (QLoRA - LoRA-16)``.

    Unresolved where QLoRA's gap is under ``LEAST_RATIO`` standard errors, or fewer than two seeds are shared.
    """
    seeds = shared(row, qlora, lora_16)
    if len(seeds) < 2:
        return GapClosed(None, None, None, f"unresolved: {len(seeds)} training seeds in common with QLoRA and LoRA-16")
    gain = np.array([qlora[s] - row[s] for s in seeds])
    gap = np.array([qlora[s] - lora_16[s] for s in seeds])
    se = float(gap.std(ddof=1)) / math.sqrt(len(seeds))
    mean = float(gap.mean())
    if not mean > LEAST_RATIO * se:
        return GapClosed(None, None, None, f"unresolved: the gap between QLoRA and LoRA-16 is {mean:.4f}, its standard "
                                           f"error {se:.4f}, and fewer than {LEAST_RATIO:g} of these say nothing")
    share = float(gain.mean()) / mean
    interval = paired_interval((gain - share * gap).tolist())
    half = (interval.high - interval.mean) / mean
    return GapClosed(share, share - half, share + half)


@dataclass(frozen=True, slots=True)
class Difference:
    """Row minus another over the seeds of both, with a Student-t interval of 95 %; negative where the row is better."""

    mean: float
    low: float
    high: float
    train_seeds: int
    complete: bool = True

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"undecided"``, as it is with too few seeds, and where the row failed at a seed
        at which the other did not (then it is not ``complete``): it can't be better on the seeds that it survived."""
        if self.train_seeds < LEAST_SEEDS or (self.high < 0 and not self.complete):
            return "undecided"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "undecided"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": LEVEL, "verdict": self.verdict}


def difference(row: Losses, other: Losses, failed: Collection[int] = ()) -> Difference | None:
    """``None`` with fewer than two seeds in common; ``failed`` are those at which the row gave no loss."""
    seeds = shared(row, other)
    if len(seeds) < 2:
        return None
    interval = paired_interval([row[s] - other[s] for s in seeds])
    return Difference(interval.mean, interval.low, interval.high, len(seeds), not set(failed) & set(other))
