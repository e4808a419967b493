"""Small search spaces and memory tables for tests."""

import itertools

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import CostTable, IntArray, Linear, PhaseCost, SearchSpace, StorageFormat, Unit

FORMATS = (StorageFormat("hqq2", "hqq", 2, 64), StorageFormat("hqq3", "hqq", 3, 64),
           StorageFormat("nf4", "bitsandbytes", 4, 64, double_quant=True), StorageFormat("int8", "bitsandbytes", 8, 0))


def make_space(n_units: int, formats: tuple[StorageFormat, ...] = FORMATS,
               ranks: tuple[int, ...] = (1, 2, 4, 8)) -> SearchSpace:
    units = tuple(Unit(f"model.layers.{i}", (Linear(f"model.layers.{i}.mlp.up_proj", 128, 64, i, "mlp", "gateup"),))
                  for i in range(n_units))
    return SearchSpace(units, formats, ranks)


def make_costs(space: SearchSpace, spike: int = 1000) -> CostTable:
    """Training-like bytes: weights by bits, 16 bytes an adapter parameter, a spike per unit in one of two phases."""
    numel = space.unit_numel[:, None, None]
    sides = np.array([sum(m.out_features + m.in_features for m in u.linears) for u in space.units])[:, None, None]
    bits = np.array([f.bits for f in space.formats])[None, :, None]
    ranks = np.array(space.ranks)[None, None, :]
    weights = numel * bits // 8 + 0 * ranks
    stored = weights + 4 * sides * ranks
    trained = weights + 16 * sides * ranks
    return CostTable((PhaseCost("backward", 5000, trained - 2 * sides * ranks, spike * bits + 0 * numel * ranks),
                      PhaseCost("step", 100, trained, 0 * trained), PhaseCost("stored", 0, stored, 0 * stored)))


def every_row(space: SearchSpace) -> IntArray:
    n = space.n_units
    axes = [range(len(space.formats))] * n + [range(len(space.ranks))] * n
    return np.array(list(itertools.product(*axes)), dtype=np.int64)


def make_profile(space: SearchSpace, seed: int = 0) -> SensitivityProfile:
    rng = np.random.default_rng(seed)
    severity = 5.0 ** (4.0 - np.array([f.bits for f in space.formats]))
    damage = rng.lognormal(size=(space.n_units, 1)) * severity * 0.01
    gain = np.cumsum(rng.random((space.n_units, space.ranks[-1])), axis=1)
    return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), damage,
                              damage * 0.8, gain, 3.0, "a test")


def make_problem(n_units: int = 4, *, seed: int = 0, quantile: float = 0.5, low_steps: int | None = 6,
                 ranks: tuple[int, ...] = (1, 2, 4, 8)) -> SearchProblem:
    space = make_space(n_units, ranks=ranks)
    costs = make_costs(space)
    low, high = (costs.totals(r[None, :])[0] for r in corners(space))
    return SearchProblem(space, costs, int(low + quantile * (high - low)), make_profile(space), 24, low_steps, seed,
                         step_tokens=512)


def corners(space: SearchSpace) -> tuple[IntArray, IntArray]:
    """The lowest and the highest index row."""
    n = space.n_units
    return np.zeros(2 * n, dtype=np.int64), np.repeat([len(space.formats) - 1, len(space.ranks) - 1], n)


def distance(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Atomic edits between each of ``n x 2 L`` rows and one row of ``2 L``, ``n``."""
    return np.abs(rows - row).sum(axis=1)
