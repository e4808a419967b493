"""A planted loss over allocations, shaped like what fine-tuning a quantised decoder gives, with a known optimum.

    loss = floor + phi(sum_u damage[u, f_u] (1 - share_u r_u / (r_u + half_u))) + sum_u task_u H / (r_u + H)

The first sum is the quantisation damage that adapters leave: they recover a share of it, so that a rank buys more
where bits are low. ``phi(x) = x + K x^2``, linear beyond ``KNEE``, makes damage add up to more than its parts. The
second sum is what the task needs of adapters and small ranks can't give.
"""

from dataclasses import dataclass

import numpy as np

from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation, CostTable, IntArray, SearchSpace, StorageFormat
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.utils.errors import SpaceError

# Orders of magnitude as measured on a decoder of 135 M parameters (nats per token).
FLOOR = 4.0
TOTAL_DAMAGE_4_BIT = 0.32
TOTAL_TASK = 0.68
DAMAGE_PER_BIT = 5.0
INTERACTION = 1.0
KNEE = 0.3
TASK_HALF_RANK = 0.2
_BISECTIONS = 8


@dataclass(frozen=True)
class Optimum:
    """The best row found (``2 L``), its true loss, and a proven lower bound on every row that fits."""

    row: IntArray
    loss: float
    bound: float


class Landscape:
    """The planted truth.

    Args:
        space: Units and ladders.
        seed: Draws everything that differs between landscapes.
        severity: Relative damage of the units, ``L``, positive (e.g. measured on a real model), or ``None`` to draw
            it: log-normal, larger for large units and at both ends of the stack.

    Raises:
        SpaceError: If ``severity`` has the wrong shape or is not positive.
    """

    def __init__(self, space: SearchSpace, seed: int, severity: FloatArray | None = None) -> None:
        self.space, self._seed = space, seed
        n = space.n_units
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
        size = space.unit_numel / space.unit_numel.mean()
        drawn = rng.lognormal(0.0, 0.8, n) * size * _ends(n)
        if severity is not None and (severity.shape != (n,) or not (severity > 0).all()):
            raise SpaceError(f"severity must hold {n} positive numbers; got shape {severity.shape}")
        drawn = drawn if severity is None else severity
        self._severity = TOTAL_DAMAGE_4_BIT * drawn / drawn.sum()
        task = rng.lognormal(0.0, 0.8, n) * size
        self.task = TOTAL_TASK * task / task.sum()
        self._half = rng.lognormal(np.log(6.0), 0.4, n)
        self._share = rng.uniform(0.5, 0.8, n)
        self.quantization_sensitivity = np.stack([self.format_damage(f) for f in space.formats], axis=1)
        ranks = np.array(space.ranks.values, dtype=np.float64)
        self._left = self.quantization_sensitivity[:, :, None] * self.kept(ranks[None, :])[:, None, :]
        self._missed = self.missed(ranks[None, :])

    def format_damage(self, fmt: StorageFormat) -> FloatArray:
        """Damage of every unit under one format, on the space's ladder or not, ``L`` (nats)."""
        if fmt.bits >= 16:
            return np.zeros(self.space.n_units)
        key = int.from_bytes(fmt.name.encode(), "little")
        whim = np.random.default_rng(np.random.SeedSequence([self._seed, 1, key])).lognormal(0.0, 0.3,
                                                                                             self.space.n_units)
        coarseness = (fmt.block / 64) ** 0.25 if fmt.block else 1.0
        damage: FloatArray = self._severity * DAMAGE_PER_BIT ** (4.0 - fmt.bits) * coarseness * whim
        return damage

    def kept(self, ranks: FloatArray) -> FloatArray:
        """Share of a unit's damage that ``1 or L x R`` ranks leave, ``L x R``."""
        left: FloatArray = 1.0 - self._share[:, None] * ranks / (ranks + self._half[:, None])
        return left

    def missed(self, ranks: FloatArray) -> FloatArray:
        """What ``1 or L x R`` ranks miss of each unit's part in the task, ``L x R`` (nats)."""
        lost: FloatArray = self.task[:, None] * TASK_HALF_RANK / (ranks + TASK_HALF_RANK)
        return lost

    def true_loss(self, rows: IntArray) -> FloatArray:
        """Loss of ``n x 2 L`` index rows at the end of high fidelity, without noise, ``n``."""
        n = self.space.n_units
        q, r, units = rows[:, :n], rows[:, n:], np.arange(n)
        missed: FloatArray = self._missed[units, r].sum(axis=1)
        return FLOOR + phi(self._left[units, q, r].sum(axis=1)) + missed

    def trained(self, allocation: Allocation, formats: list[StorageFormat]) -> tuple[float, float]:
        """Loss before and at the end of training; formats and ranks may be off the ladders (references)."""
        damage = np.array([self.format_damage(f)[u] if f.name not in self.space.format_index
                           else self.quantization_sensitivity[u, self.space.format_index[f.name]] for u, f in enumerate(formats)])
        ranks = np.array(allocation.ranks, dtype=np.float64)[:, None]
        after = phi(np.array([(damage * self.kept(ranks)[:, 0]).sum()]))[0] + self.missed(ranks).sum()
        return FLOOR + TOTAL_TASK + float(phi(np.array([damage.sum()]))[0]), FLOOR + float(after)

    def optimum(self, costs: CostTable, budget_bytes: int) -> Optimum:
        """The best allocation in the budget, and how much better any other could be.

        For a slope ``s`` of ``phi`` the knapsack over ``s x damage left + task missed``, less the conjugate of ``phi``
        at ``s``, bounds every loss from below; bisection on ``s`` makes the bound tight.

        Raises:
            BudgetError: If nothing fits.
        """
        n, low, high = self.space.n_units, 0.0, KNEE
        bound, found = -np.inf, np.zeros((0, 2 * n), dtype=np.int64)
        for _ in range(_BISECTIONS):
            x = (low + high) / 2
            values = (1.0 + 2.0 * INTERACTION * x) * self._left + self._missed[:, None, :]
            row = solve_knapsack(values, costs, budget_bytes)
            cells = (np.arange(n), row[:n], row[n:])
            bound = max(bound, FLOOR + float(values[cells].sum()) - INTERACTION * x**2)
            found = np.vstack([found, row])
            low, high = (x, high) if self._left[cells].sum() > x else (low, x)
        losses = self.true_loss(found)
        best = int(losses.argmin())
        return Optimum(found[best], float(losses[best]), bound)


def phi(total: FloatArray) -> FloatArray:
    """Damage of the whole from the sum of its parts, both ``n`` (nats): convex, so more than its parts."""
    bent = np.minimum(total, KNEE)
    joint: FloatArray = total + INTERACTION * (bent**2 + 2.0 * KNEE * (total - bent))
    return joint


def _ends(n: int) -> FloatArray:
    """1 in the middle of the stack, up to 3 at its ends, ``n``."""
    depth = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    ends: FloatArray = 1.0 + 2.0 * np.exp(-np.minimum(depth, 1.0 - depth) / 0.05)
    return ends
