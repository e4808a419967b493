"""Paired comparisons between rows: gap closed, and differences."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qra_bo.study.intervals import LEAST_SEEDS, LEVEL, interval_of
from qra_bo.trials import SequenceLosses

Losses = Mapping[int, float]
"""Test loss by training seed."""
Sequences = Mapping[int, SequenceLosses]
"""Losses of every test sequence by training seed, where they are known."""
LEAST_RATIO = 3.0
"""Least ratio of QLoRA's gap to its standard error for a share of it to be resolved."""


def shared(*losses: Losses) -> list[int]:
    """Return the training seeds that all have, in order."""
    return sorted(set.intersection(*(set(one) for one in losses)))


@dataclass(frozen=True, slots=True)
class GapClosed:
    """(QLoRA - row) / (QLoRA - LoRA-16) over the seeds that all three have.

    Args:
        share: 1 if the row reaches LoRA-16; ``None`` if unresolved.
        low: Lower end of the 95 % interval, which holds for other text too where the losses of sequences are known.
        high: Upper end.
        note: Why it is unresolved, or empty.
    """

    share: float | None
    low: float | None
    high: float | None
    note: str = ""


def gap_closed(row: Losses, qlora: Losses, lora_16: Losses, row_text: Sequences | None = None,
               qlora_text: Sequences | None = None, lora_16_text: Sequences | None = None) -> GapClosed:
    """Return the share, with the interval of the residuals ``(QLoRA - row) - share (QLoRA - LoRA-16)`` (linearised).

    A residual is the loss that lies at ``share`` between QLoRA and LoRA-16, less the row's: so sequence by sequence.
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
                                           f"error {se:.4f}, and at least {LEAST_RATIO:g} times that is needed")
    share = float(gain.mean()) / mean
    own, theirs, best = ([(text or {}).get(seed, ()) for seed in seeds]
                         for text in (row_text, qlora_text, lora_16_text))
    between = [tuple(((1 - share) * q[0] + share * b[0], q[1], q[2]) for q, b in zip(*pair, strict=True)) if all(pair)
               else () for pair in zip(theirs, best, strict=True)]
    interval, _ = interval_of((gain - share * gap).tolist(), between, own)
    half = (interval.high - interval.mean) / mean
    return GapClosed(share, share - half, share + half)


@dataclass(frozen=True, slots=True)
class Difference:
    """Row minus another over common seeds, with an interval of 95 %, which holds for other text too where it is
    ``over_text``; negative: the row is better."""

    mean: float
    low: float
    high: float
    train_seeds: int
    complete: bool = True
    over_text: bool = False

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"`` or ``"undecided"``: with too few seeds, or where the row would be better but failed
        at a seed at which the other did not (it is not ``complete``)."""
        if self.train_seeds < LEAST_SEEDS or (self.high < 0 and not self.complete):
            return "undecided"
        return "better" if self.high < 0 else "worse" if self.low > 0 else "undecided"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": LEVEL, "verdict": self.verdict}


def difference(row: Losses, other: Losses, failed: Collection[int] = (), row_text: Sequences | None = None,
               other_text: Sequences | None = None) -> Difference | None:
    """Return row minus other, ``None`` with fewer than two common seeds; the row failed at the seeds ``failed``."""
    seeds = shared(row, other)
    if len(seeds) < 2:
        return None
    texts = [[(text or {}).get(seed, ()) for seed in seeds] for text in (row_text, other_text)]
    interval, over_text = interval_of([row[s] - other[s] for s in seeds], *texts)
    return Difference(interval.mean, interval.low, interval.high, len(seeds), not set(failed) & set(other), over_text)
