"""An emulator of a task: a regression fitted on its table, with the noise and the domain of the table."""

import math
from collections.abc import Mapping

import numpy as np

from bench.emulator.features import Describer, Reach
from bench.emulator.levels import Levelled, levelled
from bench.emulator.regressions import BoostedTrees, SetNetworks
from bench.emulator.table import Table, TableRow, comparable_rate, same_rate
from qra_bo.space import Allocation, FloatArray
from qra_bo.utils.errors import ConfigError, DataError

CALIBRATION = "calibration"
LEAST_ROWS = 20
FIT_SEED = 0


FAMILIES: Mapping[str, type[BoostedTrees] | type[SetNetworks]] = {"boosted": BoostedTrees, "network": SetNetworks}
"""Families of regressions by the name that ``oracle.emulator`` takes."""


class Emulator:
    """Losses of any allocation within the reach of a table, by a regression of one of ``FAMILIES``.

    Raises:
        ConfigError: If there is no such family.
        DataError: If the table holds too little to be fitted.
    """

    def __init__(self, table: Table, family: str) -> None:
        if family not in FAMILIES:
            raise ConfigError(f"oracle.emulator must be one of {', '.join(FAMILIES)}; got {family!r}")
        self.table, self.facts, self.family = table, table.facts, family
        self.data = usable(table)
        self.noise = self.data.noise
        self.rate = table_rate(table.rows)
        self.steps = (*table.facts.record_at, table.facts.steps)
        self.curvature, self.best_rate = rate_curve(table.rows)
        self._describer = Describer(table.facts, table.profile)
        self._reach = Reach(self._describer.whole(self.data.allocations))
        self._regression = FAMILIES[family](self._describer, self.data.allocations, self.data.targets, FIT_SEED)
        self._ranks = (min(table.facts.ranks), max(r for a in self.data.allocations for r in a.ranks))

    def losses(self, allocations: tuple[Allocation, ...]) -> FloatArray:
        """Return losses without noise after each of ``steps``, ``n x S``."""
        return self._regression.predict(allocations)

    def refusal(self, allocation: Allocation) -> str | None:
        """Return the reason why the table does not cover an allocation; ``None`` where it does."""
        foreign = sorted(set(allocation.formats) - set(self.facts.formats))
        if len(allocation) != len(self.facts.units):
            return f"{len(allocation)} units, where the table's have {len(self.facts.units)}"
        if foreign:
            return f"the formats {foreign}, of which the table has no row"
        if min(allocation.ranks) < self._ranks[0] or max(allocation.ranks) > self._ranks[1]:
            return f"ranks outside {self._ranks[0]} to {self._ranks[1]}, of which the table has no row"
        if not self._reach.contains(self._describer.whole((allocation,)))[0]:
            return "further from every row of the table than its rows are from one another"
        return None

    def rate_penalty(self, lr_scale: float) -> float:
        """Return the cost of another factor on the learning rate than the table's own (nats), by ``rate_curve``."""
        here, home = (self.curvature * math.log2(scale / self.best_rate) ** 2 for scale in (lr_scale, self.rate))
        return here - home


def table_rate(rows: tuple[TableRow, ...]) -> float:
    """Return the factor on the learning rate of the table's own rows, or raise ``DataError`` if it has none yet."""
    own = next((row.lr_scale for row in rows if row.origin != CALIBRATION and not row.origin.startswith("run ")), None)
    if own is None:
        raise DataError("the table holds no row at its calibrated learning rate yet; collect more rows")
    return own


def usable(table: Table) -> Levelled:
    """Return the table's losses as of its first training seed, or raise ``DataError`` if there are too few."""
    rate = table_rate(table.rows)
    rows = [row for row in table.rows if comparable_rate(row.lr_scale, rate)
            and (row.origin != CALIBRATION or same_rate(row.lr_scale, rate))]
    found = levelled(rows, table.facts.train_seeds[0], rate)
    if len(found.allocations) < LEAST_ROWS:
        raise DataError(f"the table of {table.facts.task} has {len(found.allocations)} allocations with a loss; at "
                        f"least {LEAST_ROWS} are needed to fit an emulator: collect more rows")
    return found


def rate_curve(rows: tuple[TableRow, ...]) -> tuple[float, float]:
    """Fit curvature (nats per squared doubling, at least 0) and best factor of the learning rate to calibration rows.

    The curve is one parabola in the logarithm of the factor, on a level of its own for every allocation.
    """
    tried = [row for row in rows if row.origin == CALIBRATION and row.loss is not None]
    choices = list(dict.fromkeys(row.allocation for row in tried))
    x = np.log2([row.lr_scale for row in tried])
    levels = np.array([[float(row.allocation == a) for a in choices] for row in tried]).reshape(len(tried), -1)
    if len(set(x.tolist())) < 3:
        return 0.0, table_rate(rows)
    solved, *_ = np.linalg.lstsq(np.column_stack([x**2, x, levels]), np.array([row.loss for row in tried]), rcond=None)
    if solved[0] <= 0:
        return 0.0, table_rate(rows)
    return float(solved[0]), float(2.0 ** np.clip(-solved[1] / (2 * solved[0]), x.min(), x.max()))
