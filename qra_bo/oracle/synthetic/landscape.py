"""A planted loss over allocations, shaped like that of fine-tuning a quantised decoder, with a known optimum.

    loss = floor + phi(sum_u s[u, f_u] (1 - share_u r_u / (r_u + half_u))) + sum_u task_u H / (r_u + H)

The first sum is the quantisation sensitivity ``s`` that adapters leave: they recover a share of it, so that a rank
gains more where bits are low. ``phi(x) = x + K x^2``, linear beyond ``KNEE``, makes the whole more than the sum of its
parts. The second sum is the part of the task that small ranks can't learn.
"""

import numpy as np

from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation, IntArray, SearchSpace, StorageFormat
from qra_bo.utils.errors import SpaceError

# Orders of magnitude as measured on a decoder of 135 M parameters (nats per token).
FLOOR = 4.0
TOTAL_4_BIT = 0.32
TOTAL_TASK = 0.68
FACTOR_PER_BIT = 5.0
INTERACTION = 1.0
KNEE = 0.3
TASK_HALF_RANK = 0.2


class Landscape:
    """The planted loss and its parts.

    Attributes:
        quantization_sensitivity: Sensitivity of every unit to every format, ``L x F``.
        left: The part of it that adapters of every rank leave, ``L x F x R``.
        unlearned: The part of the task that every rank of a unit can't learn, ``L x R``.

    Args:
        space: Units and ladders.
        seed: Draws everything that differs between landscapes.
        severity: Relative sensitivity of the units, ``L``, positive (e.g. measured on a real model), or ``None`` to
            draw it: log-normal, larger for large units and at both ends of the stack.

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
        self._severity = TOTAL_4_BIT * drawn / drawn.sum()
        task = rng.lognormal(0.0, 0.8, n) * size
        self.task = TOTAL_TASK * task / task.sum()
        self._half = rng.lognormal(np.log(6.0), 0.4, n)
        self._share = rng.uniform(0.5, 0.8, n)
        self.quantization_sensitivity = np.stack([self.format_sensitivity(f) for f in space.formats], axis=1)
        ranks = np.array(space.ranks.values, dtype=np.float64)
        self.left = self.quantization_sensitivity[:, :, None] * self.kept(ranks[None, :])[:, None, :]
        self.unlearned = self.missed(ranks[None, :])

    def format_sensitivity(self, fmt: StorageFormat) -> FloatArray:
        """Return the sensitivity of every unit to one format, on the space's ladder or not, ``L`` (nats)."""
        if fmt.bits >= 16:
            return np.zeros(self.space.n_units)
        key = int.from_bytes(fmt.name.encode(), "little")
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 1, key]))
        own = rng.lognormal(0.0, 0.3, self.space.n_units)
        coarseness = (fmt.block / 64) ** 0.25 if fmt.block else 1.0
        found: FloatArray = self._severity * FACTOR_PER_BIT ** (4.0 - fmt.bits) * coarseness * own
        return found

    def kept(self, ranks: FloatArray) -> FloatArray:
        """Return the share of a unit's sensitivity that ``1 or L x R`` ranks leave, ``L x R``."""
        left: FloatArray = 1.0 - self._share[:, None] * ranks / (ranks + self._half[:, None])
        return left

    def missed(self, ranks: FloatArray) -> FloatArray:
        """Return the part of the task that ``1 or L x R`` ranks of each unit can't learn, ``L x R`` (nats)."""
        lost: FloatArray = self.task[:, None] * TASK_HALF_RANK / (ranks + TASK_HALF_RANK)
        return lost

    def true_loss(self, rows: IntArray) -> FloatArray:
        """Return the loss of ``n x 2 L`` index rows at the end of high fidelity, without noise, ``n``."""
        n = self.space.n_units
        q, r, units = rows[:, :n], rows[:, n:], np.arange(n)
        missed: FloatArray = self.unlearned[units, r].sum(axis=1)
        return FLOOR + phi(self.left[units, q, r].sum(axis=1)) + missed

    def trained(self, allocation: Allocation, formats: list[StorageFormat]) -> tuple[float, float]:
        """Return the loss before and at the end of training; formats and ranks may be off the ladders (references)."""
        planted, index = self.quantization_sensitivity, self.space.format_index
        parts = np.array([planted[u, index[f.name]] if f.name in index else self.format_sensitivity(f)[u]
                          for u, f in enumerate(formats)])
        ranks = np.array(allocation.ranks, dtype=np.float64)[:, None]
        after = phi(np.array([(parts * self.kept(ranks)[:, 0]).sum()]))[0] + self.missed(ranks).sum()
        return FLOOR + TOTAL_TASK + float(phi(np.array([parts.sum()]))[0]), FLOOR + float(after)


def phi(total: FloatArray) -> FloatArray:
    """Return the loss of the whole from the sum of its parts, both ``n`` (nats): convex, so more than the sum."""
    bent = np.minimum(total, KNEE)
    joint: FloatArray = total + INTERACTION * (bent**2 + 2.0 * KNEE * (total - bent))
    return joint


def _ends(n: int) -> FloatArray:
    """Return factors of 1 in the middle of the stack, up to 3 at its ends, ``n``."""
    depth = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    ends: FloatArray = 1.0 + 2.0 * np.exp(-np.minimum(depth, 1.0 - depth) / 0.05)
    return ends
