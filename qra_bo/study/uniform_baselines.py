"""The uniform baselines of a search: for every format the largest ranks that fit, and uniform + filled ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.utils.errors import BudgetError


@dataclass(frozen=True)
class BaselineRules:
    """What decides the uniform baselines.

    Args:
        n_units: Units of the model.
        formats: Names of the formats that the search may use, in ladder order.
        max_rank: Largest rank that every matrix allows.
        budget_bytes: Hard limit on predicted bytes.
        predict_bytes: Predicted bytes of any allocation in the configured scope, ranks off the ladder included; grows
            with rank, but for steps where 8-bit moments or pages begin.
        admits: Whether a limit beside the budget allows an allocation, whatever its ranks.
    """

    n_units: int
    formats: tuple[str, ...]
    max_rank: int
    budget_bytes: int
    predict_bytes: Callable[[Allocation], int]
    admits: Callable[[Allocation], bool] = lambda allocation: True

    def fits(self, allocation: Allocation) -> bool:
        return self.admits(allocation) and self.predict_bytes(allocation) <= self.budget_bytes


def largest_rank(rules: BaselineRules, fmt: str) -> int:
    """Return the largest rank with which the uniform allocation of ``fmt`` fits; 0 if rank 1 does not."""
    low, high = 0, rules.max_rank
    while low < high:
        middle = (low + high + 1) // 2
        if rules.fits(uniform(rules.n_units, fmt, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def uniform_baselines(rules: BaselineRules, profile: SensitivityProfile) -> list[Allocation]:
    """Return for every format the largest rank that fits and the one below, most promising first.

    Formats are ordered by the profile's quantisation sensitivity summed over units (least first; of equals the earlier
    on the ladder), and within a format the larger rank comes first.

    Raises:
        BudgetError: If no uniform allocation fits.
    """
    total = {f: float(profile.quantization_sensitivity[:, profile.formats.index(f)].sum()) for f in rules.formats}
    found: list[Allocation] = []
    for fmt in sorted(rules.formats, key=lambda f: total[f]):
        top = largest_rank(rules, fmt)
        candidates = [uniform(rules.n_units, fmt, rank) for rank in (top, top - 1) if rank >= 1]
        found += [a for a in candidates if rules.fits(a)]  # a smaller rank needs more where it ends 8-bit moments
    if not found:
        least, fmt = min((rules.predict_bytes(uniform(rules.n_units, f, 1)), f) for f in rules.formats)
        raise BudgetError(f"the budget of {rules.budget_bytes:,} bytes is below the smallest uniform choice: "
                          f"{fmt} with rank 1 needs {least:,} bytes; raise budget to at least that, or "
                          "add a lower bit-width to bits")
    return found


def fill(rules: BaselineRules, best: Allocation) -> Allocation:
    """Return uniform + filled ranks: the left-over bytes of ``best`` spent on one more rank, last unit first.

    A unit whose further rank does not fit is passed over; with nothing left over the result is ``best`` itself.
    """
    ranks = list(best.ranks)
    for unit in reversed(range(len(ranks))):
        if ranks[unit] < rules.max_rank:
            ranks[unit] += 1
            if not rules.fits(Allocation(best.formats, tuple(ranks))):
                ranks[unit] -= 1
    return Allocation(best.formats, tuple(ranks))


def choose(baselines: Sequence[Allocation], limit: int | None) -> tuple[list[Allocation], list[Allocation]]:
    """Split into the baselines to evaluate before the filled one is made, and those that may take its place.

    With a limit of ``n``, one of the ``n`` places is kept for uniform + filled ranks; where that is no new allocation,
    the next baseline takes the place.
    """
    if limit is None:
        return list(baselines), []
    first = max(1, limit - 1)
    return list(baselines[:first]), list(baselines[first:max(1, limit)])
