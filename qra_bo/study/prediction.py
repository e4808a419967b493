"""The allocation of ``effort=instant``: the exact optimum under learned exchange rates, predicted and not searched.

It may be trained beside the best uniform choice, QLoRA and the untuned model, on one training seed. One seed decides
nothing: there is no interval and no verdict. All losses are of the test split, after a trial's steps.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.files import load_rates
from qra_bo.searchers.rates.model import of_training
from qra_bo.space import Allocation, FloatArray, with_allowance
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.study.events import Calibration, Prediction, Untuned
from qra_bo.study.intervals import LEVEL
from qra_bo.study.setting import BaselineRules
from qra_bo.study.state import COMPARISON, QLORA, UNIFORM, UNTUNED, qlora_of
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.utils.errors import BudgetError

BY_PRIOR = "learned from earlier runs, not calibrated in this one"
"""Source of a predicted allocation's learning rate."""
SHRUNK = (0.97, 0.94)
"""Shares of the budget for what is delivered where the predicted allocation measures over the budget."""
REL_GAP = 1e-4


def predict(run: TrialRunner, problem: SearchProblem, rules: BaselineRules, baselines: Sequence[Allocation]) -> None:
    """Record the allocation that the learned rates call best, and what they predict of it; no trial is run.

    A prediction in the journal stays: another machine or solver may find another optimum within ``REL_GAP``. It has no
    reference where no rank of ``baselines`` is on the ladders. The learning rate is recorded too. Raises
    ``ConfigError`` if the file of ``surrogate.rates`` can't be read or holds no rates.
    """
    if run.study.prediction is not None and run.study.learning_rate is not None:
        return
    config = run.config
    steps = run.study.objective_steps
    rates = of_training(load_rates(config.surrogate.rates), problem, steps)
    table = rates.table(problem)
    positions = {a: Observations(problem).position(a) for a in baselines}
    uniform = {a: row for a, row in positions.items() if row is not None}
    best = min(uniform, key=lambda a: rates.difference(problem, uniform[a], next(iter(uniform.values())))[0],
               default=None)
    found = dict(solved(problem, table, [1.0, *SHRUNK]))
    first = next(iter(found))
    mean, sd = (0.0, 0.0) if best is None else rates.difference(problem, found[first], uniform[best])
    if best is not None and mean >= 0:  # a rank between two of the ladder's may be worth more than mixing
        found, mean, sd = {best: uniform[best], **found}, 0.0, 0.0
    half = float(ndtri((1 + LEVEL) / 2)) * sd
    order = dict.fromkeys([*found, *(() if best is None else (best,))])
    run.conclude(Prediction(tuple(order), best, mean, mean - half, mean + half, steps, tuple(rates.sources)))
    if not run.study.calibrated:
        run.conclude(Calibration(config.adapter.lr * rates.lr_scale, config.adapter.lr_rule, source=BY_PRIOR))


def solved(problem: SearchProblem, table: FloatArray, shares: Sequence[float]) -> list[tuple[Allocation, FloatArray]]:
    """Return the best allocation under an additive ``table`` (``L x F x R``) within each share of the budget's memory,
    with its row; shares that hold no allocation are passed over, but for the first."""
    found: list[tuple[Allocation, FloatArray]] = []
    for share in shares:
        costs = with_allowance(problem.costs, problem.budget_bytes - int(share * problem.budget_bytes))
        try:
            row = solve_knapsack(table, costs, problem.budget_bytes, rel_gap=REL_GAP)
        except BudgetError:
            if not found:
                raise
            continue
        found.append((problem.space.decode(row), np.asarray(row, dtype=np.float64)))
    return found


def compare(run: TrialRunner) -> None:
    """Train the predicted allocation and evaluate before it what ``effort.compare`` names but for QLoRA.

    The predicted allocation comes last: a final fine-tune of that length continues its training at its end.
    """
    wanted, prediction = run.config.effort.compare, run.study.prediction
    assert prediction is not None
    with run.stage(COMPARISON):
        if UNTUNED in wanted and run.study.untuned is None:
            found = run.executor.call("untuned", {"split": "test"}, run.progress)
            run.record(Untuned(found["loss"], found["loss_se"], found["forward_tokens"]))
        first, reference = prediction.allocations[0], prediction.reference
        beside = [reference] if UNIFORM in wanted and reference is not None and reference != first else []
        run.evaluate_all([run.plan(a, COMPARISON, split="test") for a in (*beside, first)])


def compare_qlora(run: TrialRunner) -> None:
    """Train QLoRA where ``effort.compare`` names it: after the final fine-tune, for which nobody should wait longer."""
    if QLORA in run.config.effort.compare and run.study.prediction is not None:
        with run.stage("reference"):
            run.reset_stopwatch()  # the final fine-tune is no time of the search
            allocation, codes = qlora_of(run.study)
            planned = run.plan(allocation, COMPARISON, split="test", codes=codes)
            is_new = planned.spec.key not in run.study.by_key
            run.evaluate_all([planned])
            if is_new and run.study.final is not None:
                run.forget_checkpoints()
