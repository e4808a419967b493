"""The uniform baselines that every search gets: the largest ranks that fit, and "uniform filled"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.utils.errors import BudgetError

PredictBytes = Callable[[Allocation], int]
"""Predicted bytes of any allocation in the configured scope, ranks off the ladder included."""


@dataclass(frozen=True)
class BaselineRules:
    """What decides the uniform baselines.

    Args:
        n_units: Units of the model.
        formats: Names of the formats that the search may use, in ladder order.
        max_rank: Largest rank that every matrix allows.
        budget_bytes: Hard limit.
        predict_bytes: See ``PredictBytes``; grows with rank, but for steps where moments of 8 bits or pages begin.
        admits: What a limit beside the budget says of an allocation, whatever its ranks.
    """

    n_units: int
    formats: tuple[str, ...]
    max_rank: int
    budget_bytes: int
    predict_bytes: PredictBytes
    admits: Callable[[Allocation], bool] = lambda allocation: True

    def fits(self, allocation: Allocation) -> bool:
        return self.admits(allocation) and self.predict_bytes(allocation) <= self.budget_bytes


def largest_rank(rules: BaselineRules, fmt: str) -> int:
    """The largest integer rank with which the uniform choice of ``fmt`` fits; 0 if rank 1 does not."""
    low, high = 0, rules.max_rank
    while low < high:
        middle = (low + high + 1) // 2
        if rules.fits(uniform(rules.n_units, fmt, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def uniform_baselines(rules: BaselineRules, profile: SensitivityProfile) -> list[Allocation]:
    """For every format the largest integer rank that fits and the one below, most promising first.

    Promise is the profile's damage summed over units (least first; of equals the earlier on the ladder), and within a
    format the larger rank.

    Raises:
        BudgetError: If no uniform choice fits.
    """
    damage = {f: float(profile.quantization_sensitivity[:, profile.formats.index(f)].sum()) for f in rules.formats}
    anchors: list[Allocation] = []
    for fmt in sorted(rules.formats, key=lambda f: damage[f]):
        top = largest_rank(rules, fmt)
        choices = [uniform(rules.n_units, fmt, rank) for rank in (top, top - 1) if rank >= 1]
        anchors += [a for a in choices if rules.fits(a)]  # a smaller rank needs more where it ends 8-bit moments
    if not anchors:
        cheapest = min((rules.predict_bytes(uniform(rules.n_units, f, 1)), f) for f in rules.formats)
        raise BudgetError(f"the budget of {rules.budget_bytes:,} bytes is below the smallest uniform choice: "
                          f"{cheapest[1]} with rank 1 needs {cheapest[0]:,} bytes; raise budget to at least that, or "
                          "add a lower bit-width to bits")
    return anchors


def fill(rules: BaselineRules, best: Allocation) -> Allocation:
    """*Uniform filled*: the left-over bytes of ``best`` spent on one more rank, from the last unit backwards.

    A unit whose further rank does not fit is passed over; with nothing left over the result is ``best`` itself.
    """
    ranks = list(best.ranks)
    for unit in reversed(range(len(ranks))):
        if ranks[unit] >= rules.max_rank:
            continue
        ranks[unit] += 1
        if not rules.fits(Allocation(best.formats, tuple(ranks))):
            ranks[unit] -= 1
    return Allocation(best.formats, tuple(ranks))


def choose(anchors: Sequence[Allocation], limit: int | None) -> tuple[list[Allocation], list[Allocation]]:
    """Split into those to evaluate before *uniform filled* is made, and those that wait for a place left over.

    With a limit of ``n``, one of the ``n`` places is kept for *uniform filled*; where that is no new allocation, the
    next of the list takes it.
    """
    if limit is None:
        return list(anchors), []
    first = max(1, limit - 1)
    return list(anchors[:first]), list(anchors[first:max(1, limit)])
