"""The allocation of ``effort=instant``: the exact optimum under learned exchange rates, predicted and not searched, or
a simple choice that is expected to be better after trainings at low fidelity.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

from scipy.special import ndtri

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import load_rates, of_training
from qra_bo.space import Allocation, FloatArray, with_allowance
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.study.events import Interval, Prediction
from qra_bo.study.intervals import LEVEL
from qra_bo.study.state import COMPARISON
from qra_bo.study.trial_runner import TrialRunner, no_loss
from qra_bo.trials import Fidelity
from qra_bo.utils.errors import BudgetError

SHRUNK = (0.97, 0.94)
"""Shares of the budget for what is delivered where the predicted allocation measures over the budget."""
REL_GAP = 1e-4
CARRIED, CARRIED_SHARE = 0.02, 0.1
"""Standard deviation of what a paired difference after 12 steps leaves open of that after 24 (nats), and as a share of
it: 0.005 among the better half of the plays' table, 0.021 of GSM8K's; 0.15 of large differences."""


def predict(run: TrialRunner, problem: SearchProblem, uniform: Allocation | None,
            fractional: Sequence[Allocation]) -> None:
    """Record what is delivered: of the allocation that the learned rates call best, the first of the ``fractional`` and
    the ``uniform`` choice, the one with the least expected loss; the better simple choice where the interval of
    the first one's difference to it holds 0.

    The three are trained at low fidelity first, on one seed, and their measured differences enter what is expected.
    Another machine or solver may find another optimum within ``REL_GAP``: of a run that goes on, the prediction in its
    journal stays. It has no reference without a ``uniform`` choice. Raises ``ConfigError`` if the file of
    ``surrogate.rates`` can't be read or holds no rates, ``TrainingError`` if no training gave a loss.
    """
    config, steps, seen = run.config, run.study.objective_steps, Observations(problem)
    fidelity = Fidelity.HIGH if problem.low_steps is None else Fidelity.LOW
    checked_steps = problem.low_steps or problem.high_steps
    learned = load_rates(config.surrogate.rates)
    late, early = (of_training(learned, problem, n) for n in (steps, checked_steps))
    predicted = solved(problem, late.table(problem), [1.0, *SHRUNK])
    arms = list(dict.fromkeys(a for a in (predicted[0], *fractional[:1], uniform) if a is not None))
    done = run.evaluate_all([run.plan(a, COMPARISON, fidelity) for a in arms])
    losses = {e.allocation: e.loss for e in done if e.loss is not None}
    if not losses:
        raise no_loss("no training that checks the prediction gave a loss", done)

    def expected(a: Allocation, b: Allocation | None) -> Interval:  # both were trained
        rows = seen.position(a), None if b is None else seen.position(b)
        if b in (None, a) or rows[0] is None or rows[1] is None:
            return Interval(0.0, 0.0, 0.0)
        before, after = (rates.difference(problem, rows[0], rows[1])[0] for rates in (early, late))
        return updated(before, after, late.error, losses[a] - losses[b])

    ranked = sorted(losses, key=lambda a: expected(a, next(iter(losses))).mean)
    simple = next((a for a in ranked if a in (*fractional[:1], uniform)), None)
    mixed = next((a for a in ranked if a not in (*fractional[:1], uniform)), None)
    first = simple if simple is not None and mixed is not None and expected(mixed, simple).high >= 0 else ranked[0]
    reference = uniform if uniform in losses else None
    versus = asdict(expected(first, reference))
    order = dict.fromkeys([first, *predicted, *ranked])
    run.conclude(Prediction(**versus, allocations=tuple(order), reference=reference, steps=steps,
                            sources=tuple(late.sources), simple=simple, versus_simple=expected(first, simple),
                            checked_steps=checked_steps,
                            mixed=None if mixed is None or first == mixed else expected(mixed, simple)))


def updated(early: float, late: float, error: float, measured: float) -> Interval:
    """Return what is expected of a difference of two losses (nats) after a ``measured`` one at lower fidelity.

    Of a model that nobody learned from, the promised differences may be off by about their own size: the truth is taken
    to be ``k`` times them, ``k ~ N(1, 1)``, and an error that both lengths share: the rates', and more on other models.

    Args:
        early: What the rates promise at the measured length.
        late: What they promise at the length that is delivered.
        error: Standard deviation of the rates' error.
        measured: Difference of the two trainings, on one seed.
    """
    noise = CARRIED**2 + (CARRIED_SHARE * measured) ** 2
    unexplained = error**2 + CARRIED**2
    shared = early * late + unexplained
    gain = shared / (early**2 + unexplained + noise)
    mean, variance = late + gain * (measured - early), late**2 + unexplained - gain * shared
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def solved(problem: SearchProblem, table: FloatArray, shares: Sequence[float]) -> list[Allocation]:
    """Return the best allocation under an additive ``table`` (``L x F x R``) within each share of the budget's memory;
    shares that hold no allocation are passed over, but for the first."""
    found: list[Allocation] = []
    for share in shares:
        costs = with_allowance(problem.costs, problem.budget_bytes - int(share * problem.budget_bytes))
        try:
            found.append(problem.space.decode(solve_knapsack(table, costs, problem.budget_bytes, rel_gap=REL_GAP)))
        except BudgetError:
            if not found:
                raise
    return found
