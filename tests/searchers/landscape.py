"""A synthetic search problem shaped like the real one: damages add up to more than their parts.

True loss = base + total^power - sum of gains, with total the sum of damages that ranks partly compensate; the
profile that a searcher sees agrees with the true damages in rank only roughly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import CostTable, Linear, PhaseCost, SearchSpace, StorageFormat, Unit, uniform
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec, TrialState

FORMATS = {2: StorageFormat("hqq2", "hqq", 2, 64), 3: StorageFormat("hqq3", "hqq", 3, 64),
           4: StorageFormat("nf4", "bitsandbytes", 4, 64, True), 8: StorageFormat("int8", "bitsandbytes", 8, 0)}
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
BITS_STORED = {2: 2.5, 3: 3.5, 4: 4.127, 8: 8.02}
DAMAGE = {2: 3.1, 3: 0.50, 4: 0.14, 8: 0.004}  # of all units together, after fine-tuning (nats)
POWER = 1.4  # of the sum of damages
NUMEL, LORA = 3_540_000, 10_176  # of a layer of SmolLM2-135M; adapter parameters per rank


@dataclass(frozen=True)
class Landscape:
    """A problem and its noise-free loss."""

    problem: SearchProblem
    truth: Callable[[np.ndarray], np.ndarray]
    noise: float

    def loss(self, row: np.ndarray, train_seed: int) -> float:
        words = [train_seed, *row.tolist()]
        return float(self.truth(row[None, :])[0] + self.noise * np.random.default_rng(words).standard_normal())


def make_landscape(seed: int, *, n_units: int = 30, bits: tuple[int, ...] = (3, 4, 8), ranks: tuple[int, ...] = RANKS,
                   baseline: tuple[int, int] = (4, 4), fidelity: float = 0.7, noise: float = 0.005,
                   search_seed: int = 0) -> Landscape:
    """A landscape with the budget of the uniform baseline ``baseline`` (bits, rank).

    ``fidelity`` is the correlation of measured and true damages of units (in logarithms), and likewise of gains.
    """
    rng = np.random.default_rng([9173, seed])
    linear = [Linear(f"model.layers.{i}.w", 576, NUMEL // 576, i, "mlp", "down") for i in range(n_units)]
    space = SearchSpace(tuple(Unit(m.name, (m,)) for m in linear), tuple(FORMATS[b] for b in bits), ranks)
    rank = np.array(ranks, dtype=np.float64)
    weights = np.array([int(NUMEL * BITS_STORED[b] / 8) for b in bits])
    unit = np.broadcast_to(weights[None, :, None] + (16 * LORA * rank).astype(np.int64)[None, None, :],
                           (n_units, len(bits), len(ranks))).astype(np.int64)
    costs = CostTable((PhaseCost("peak", 1000, unit, np.zeros_like(unit)),))
    budget = int(costs.totals(space.encode(uniform(n_units, FORMATS[baseline[0]].name, baseline[1]))[None, :])[0])

    def related(sd: float) -> tuple[np.ndarray, np.ndarray]:
        true, other = rng.standard_normal((2, n_units))
        return np.exp(sd * true), np.exp(sd * (fidelity * true + np.sqrt(1 - fidelity**2) * other))

    depth = 1.0 + 0.8 * np.cos(np.linspace(0, 2 * np.pi, n_units) + rng.uniform(0, 2 * np.pi))
    true_d, seen_d = related(0.9)
    true_g, seen_g = related(0.6)
    totals = np.array([DAMAGE[b] for b in bits]) ** (1 / POWER)
    jitter = np.exp(0.25 * rng.standard_normal((n_units, len(bits))))
    damage = true_d[:, None] * jitter
    damage *= totals / damage.sum(axis=0)
    measured = seen_d[:, None] * np.exp(0.25 * rng.standard_normal((n_units, len(bits))))
    measured *= np.array([DAMAGE[b] for b in bits]) / measured.sum(axis=0)
    log_rank = np.log2(rank) / 5
    gain = true_g * depth
    gain *= 0.05 / gain.sum()
    spectrum = seen_g[:, None] * np.arange(1, 33)[None, :] ** 0.5
    profile = SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), measured,
                                 measured * 0.8, spectrum, 4.67, "synthetic")
    index = np.arange(n_units)

    def truth(rows: np.ndarray) -> np.ndarray:
        q, r = rows[:, :n_units], log_rank[rows[:, n_units:]]
        total = (damage[index, q] * (1 - 0.35 * r)).sum(axis=1)
        return 4.0 + total**POWER - (gain * (1 - np.exp(-2 * r))).sum(axis=1)

    problem = SearchProblem(space, costs, budget, profile, 24, None, search_seed, step_tokens=512)
    return Landscape(problem, truth, noise)


def evaluate(landscape: Landscape, proposal: Proposal, number: int, *, train_seed: int = 1,
             state: TrialState = TrialState.OK) -> Trial:
    """Return the trial of one proposal, as the engine would."""
    problem, allocation = landscape.problem, proposal.allocation
    row = problem.space.encode(allocation)
    loss = landscape.loss(row, train_seed) if state is TrialState.OK else None
    request = TrialSpec(allocation, problem.high_steps, problem.high_steps, train_seed, 2e-3)
    measurement = TrialResult(state, loss, None if loss is None else 0.004, (), problem.high_steps, 0, 0, None, 0.0)
    return Trial(number, allocation, problem.space.bits(allocation), proposal.stage, proposal.fidelity, request,
                 problem.seed, measurement, int(problem.costs.totals(row[None, :])[0]))


def baselines(landscape: Landscape) -> list[Trial]:
    """For every format that fits, the uniform choices of the largest rank that fits and the one below."""
    problem = landscape.problem
    found = []
    for fmt in problem.space.formats:
        fitting = [a for r in problem.space.ranks if problem.fits(a := uniform(problem.space.n_units, fmt.name, r))]
        found += [Proposal(a, Fidelity.HIGH, "baseline") for a in fitting[-2:]]
    return [evaluate(landscape, p, i) for i, p in enumerate(found)]


def run_search(landscape: Landscape, searcher: Searcher, n: int) -> list[Trial]:
    """Uniform baselines, then ``n`` evaluations one at a time (fewer if the searcher stops)."""
    history = baselines(landscape)
    searcher.tell(history)
    for _ in range(n):
        proposals = searcher.ask(1)
        if not proposals:
            break
        told = evaluate(landscape, proposals[0], len(history))
        history.append(told)
        searcher.tell([told])
    return history


def curve(landscape: Landscape, history: list[Trial]) -> np.ndarray:
    """Noise-free loss of the incumbent (by observed loss) after every evaluation, ``n``."""
    rows = np.stack([landscape.problem.space.encode(e.allocation) for e in history])
    true = landscape.truth(rows)
    losses = np.array([np.inf if e.loss is None else e.loss for e in history])
    best = [int(np.argmin(losses[: i + 1])) for i in range(len(history))]
    return true[best]
