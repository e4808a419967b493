"""Uniform baselines of the tables and of searches on them: of every format the largest rank that fits and the one
below, and uniform + filled ranks. They stay as they were, so that published searches remain comparable."""

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.study.baselines import check_uniform, largest_rank
from qra_bo.study.setting import BaselineRules


def uniform_baselines(rules: BaselineRules, profile: SensitivityProfile) -> list[Allocation]:
    """Return for every format the largest rank of the search's that fits and the one below, most promising first.

    Formats are ordered by the profile's quantisation sensitivity summed over units (least first; of equals the earlier
    on the ladder), and within a format the larger rank comes first. Raises ``BudgetError`` if no uniform allocation
    fits.
    """
    check_uniform(rules)
    total = {f: float(profile.quantization_sensitivity[:, profile.formats.index(f)].sum()) for f in rules.formats}
    found: list[Allocation] = []
    for fmt in sorted(rules.formats, key=lambda f: total[f]):
        top = largest_rank(rules, fmt)
        candidates = [uniform(rules.n_units, fmt, rank) for rank in (top, top - 1) if rank >= 1]
        found += [a for a in candidates if rules.fits(a)]  # a smaller rank needs more where it ends 8-bit moments
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
