"""Simple choices: which allocations they are, and the trials before the search (calibration, baselines, references)."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qra_bo.memory.formats import default_format
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import Rates, rows_terms
from qra_bo.space import Allocation, uniform
from qra_bo.space.space import blind_order, wider_units
from qra_bo.study.events import Calibration
from qra_bo.study.header import Given
from qra_bo.study.intervals import text_error
from qra_bo.study.setting import BaselineRules, Headroom
from qra_bo.study.state import COMPARISON, is_uniform
from qra_bo.study.trial_runner import PlannedTrial, TrialRunner, no_loss
from qra_bo.trials import Fidelity, SequenceLosses, Trial
from qra_bo.utils.errors import BudgetError, TrainingError

MOST_RATES = 7
"""Most learning rates of a calibration: steps by 2 span a factor of 64, more than any model is off the rule."""
BY_PRIOR, BY_TRIES = "learned from earlier runs, not calibrated in this one", "the best of those tried at low fidelity"
"""Sources of learning rates: of a prediction where ``calibrate.lr_scales`` names one, and of what is not searched."""
FLAT_ERRORS = 2.0
"""Standard errors over text which the last step of the rate must gain for a calibration to try a further one."""


def largest_rank(rules: BaselineRules, fmt: str) -> int:
    """Return the largest rank with which the uniform allocation of ``fmt`` fits; 0 if none does."""
    ranks = range(rules.max_rank, 0, -1)  # a larger one needs less where 8-bit moments begin
    return next((rank for rank in ranks if rules.fits(uniform(rules.n_units, fmt, rank))), 0)


def check_uniform(rules: BaselineRules) -> None:
    """Refuse a budget that no uniform allocation fits: a search needs one to compare with. A mixed one may need less,
    where a few more bits save workspace.

    Raises:
        BudgetError: With what the smallest uniform allocation needs.
    """
    if not any(largest_rank(rules, fmt) for fmt in rules.formats):
        least, fmt = min((rules.predict_bytes(uniform(rules.n_units, f, 1)), f) for f in rules.formats)
        raise BudgetError(f"the budget of {rules.budget_bytes:,} bytes is below the smallest uniform choice: "
                          f"{fmt} with rank 1 needs {least:,} bytes; raise budget to that, or add fewer bits to bits")


def uniform_choices(rules: BaselineRules, problem: SearchProblem, rates: Rates) -> list[Allocation]:
    """Return of every format the largest rank of the search's that fits, the most promising by learned rates first.
    Raises ``BudgetError`` if no uniform choice fits."""
    check_uniform(rules)
    ranks = {f: largest_rank(rules, f) for f in rules.formats}
    return _promising([uniform(rules.n_units, f, rank) for f, rank in ranks.items() if rank], problem, rates)


def fractional_choices(problem: SearchProblem, rates: Rates) -> list[Allocation]:
    """Return of every two neighbouring widths (their first formats), at every rank, the choice with the most units at
    the wider one that fits; the most promising by learned rates first."""
    space = problem.space
    fractional, wider = list[Allocation](), wider_units(blind_order(space))[1:-1]
    first = {f.bits: i for i, f in reversed(list(enumerate(space.formats)))}
    for (low, high), rank in itertools.product(itertools.pairwise(sorted(first.values())), range(len(space.ranks))):
        rows = np.hstack([np.where(wider, high, low), np.full_like(wider, rank, dtype=np.int64)])
        fitting = rows[problem.costs.feasible(rows, problem.budget_bytes)]
        fractional += [space.decode(row) for row in fitting[-1:]]
    return _promising(fractional, problem, rates)


def _promising(choices: Sequence[Allocation], problem: SearchProblem, rates: Rates) -> list[Allocation]:
    """Return allocations by the loss that rates expect; those with ranks below the ladder come last."""
    positions = {a: Observations(problem).position(a) for a in choices}
    return sorted(choices, key=lambda a: math.inf if (row := positions[a]) is None else
                  float((rows_terms(problem, row[None]) @ rates.slopes)[0]))


def in_turn(uniforms: Sequence[Allocation], fractional: Sequence[Allocation]) -> list[Allocation]:
    """Return the baselines of a run in order: uniform and fractional choices in turn, at most as many of these."""
    pairs = itertools.zip_longest(uniforms, fractional[:len(uniforms)])
    return [a for pair in pairs for a in pair if a is not None]


def calibrate(run: TrialRunner, baselines: Sequence[Allocation]) -> None:
    """Choose the learning rate from trials of uniform allocations. Raises ``TrainingError`` if no rate gave a loss."""
    if run.study.calibrated and not run.journal.content.damaged:
        return
    chosen = calibration_choices(baselines[0], run.config.effort.calibration_baselines)
    found = calibration(run, chosen, run.config.adapter.lr)
    if not run.study.calibrated:  # else the trials of damaged lines were done again
        run.record(found)


def calibrate_check(run: TrialRunner, checked: Allocation, lr_scale: float) -> None:
    """Choose the learning rate of a prediction and of its check, from trials at low fidelity of the uniform choice
    ``checked`` in it: another one judges ranks by how well a wrong rate suits them. ``lr_scale`` is the factor that
    earlier runs taught. A rate that a search calibrated stays."""
    if run.study.calibrated:
        return
    found = calibration(run, [checked], run.config.adapter.lr * lr_scale, low=True)
    run.conclude(found if found.tried else replace(found, source=BY_PRIOR))


def calibrate_given(run: TrialRunner, given: Given) -> None:
    """Record the learning rate of a given allocation: the stated one, or the best that trials at low fidelity found."""
    if run.study.calibration is not None:
        return
    found = Calibration(given.learning_rate, run.config.adapter.lr_rule, source=given.rate_source)
    if run.setting.tries_rates:
        with run.stage(COMPARISON):
            try:
                found = calibration(run, given.allocations[:1], given.learning_rate, low=True)
            except TrainingError as error:  # memory ran out: a smaller rank may be left
                run.warn(str(error))
    run.record(found)


def calibration(run: TrialRunner, chosen: Sequence[Allocation], centre: float, *, low: bool = False) -> Calibration:
    """Return the best learning rate of trials of ``chosen`` at ``centre`` times ``calibrate.lr_scales``, and beyond an
    end while the best one is there and clearly better than the one beside it (``next_rate``). A single rate is taken
    untried. With ``low`` the trials are of low fidelity, where there is one, and of no search. Raises ``TrainingError``
    if no rate gave a loss."""
    rule, scales = run.config.adapter.lr_rule, run.config.calibrate.lr_scales
    stage, fidelity = COMPARISON if low else "calibration", Fidelity.HIGH
    if low and run.config.fidelity.low is not None:
        fidelity = Fidelity.LOW
    rates, most = [centre * scale for scale in scales] if len(scales) > 1 else [], max(MOST_RATES, len(scales))
    tried, sequences = dict[float, float](), dict[float, list[SequenceLosses]]()
    while rates:
        done = run.evaluate_all([run.plan(a, stage, fidelity, learning_rate=r) for r in rates for a in chosen])
        for i, rate in enumerate(rates):
            trials = done[i * len(chosen):(i + 1) * len(chosen)]
            tried[rate] = sum(math.inf if e.loss is None else e.loss for e in trials) / len(trials)
            sequences[rate] = [e.result.sequence_losses for e in trials]
        following = next_rate(tried, most, lambda best, beside: FLAT_ERRORS * text_error(
            sequences[best], sequences[beside]))
        rates = [] if following is None else [following]
    best = min(tried, key=tried.__getitem__, default=centre * scales[0])
    if not math.isfinite(tried.get(best, 0.0)):
        raise no_loss("no learning rate of the calibration gave a loss", run.study.trials)
    if len(tried) >= most and best in (min(tried), max(tried)):
        run.warn(f"the best learning rate, {best:g}, is at the end of the {len(tried)} that were tried: another "
                 "adapter.lr may do better")
    return Calibration(best, rule, tuple(tried), tuple(
        {"learning_rate": rate, "loss": loss} for rate, loss in tried.items() if math.isfinite(loss)), tuple(chosen),
        BY_TRIES if low and tried else None)


def next_rate(tried: Mapping[float, float], most: int,
              noise: Callable[[float, float], float] = lambda best, beside: 0.0) -> float | None:
    """Return the learning rate to try after ``tried`` (loss by rate, infinite where there was none): beyond the end at
    which the best one is, in the ratio of the two there.

    ``None`` where worse ones lie on both sides of it, ``most`` are tried, or it gains ``noise`` or less on the rate
    beside it: near their optimum losses are convex in the rate's logarithm, so that a further one gains no more.
    """
    rates = sorted(tried)
    best = min(rates, key=tried.__getitem__)
    if len(rates) >= most or len(rates) < 2 or rates[0] < best < rates[-1]:
        return None
    beside = rates[1] if best == rates[0] else rates[-2]
    if math.isfinite(tried[beside]) and tried[beside] - tried[best] <= noise(best, beside):
        return None
    following = float(f"{best * best / beside:.4g}")
    return None if following in tried else following  # rates that differ by less than their digits


def calibration_choices(baseline: Allocation, n: int) -> list[Allocation]:
    """Return ``n`` uniform allocations in the format of ``baseline``, of ranks r down to about r / 4 in equal ratios.

    A search trades ranks for bits, so the rate must suit smaller ranks too; a single allocation has rank about r / 2.
    Fewer are returned where small ranks coincide.
    """
    rank, fmt = baseline.ranks[0], baseline.formats[0]
    powers = [0.5] if n == 1 else [i / (n - 1) for i in range(n)]
    ranks = dict.fromkeys(max(1, round(rank / 4**power)) for power in powers)
    return [uniform(len(baseline), fmt, r) for r in ranks]


def evaluate_baselines(run: TrialRunner, headroom: Headroom, baselines: Sequence[Allocation],
                       *, fractional_as: str = "baseline") -> list[Trial]:
    """Evaluate simple choices; return the trials that count as baselines, failed ones too.

    One that the calibration made counts. A trial that runs out of memory or measures above its prediction lowers
    ``headroom``. Fractional choices have the stage ``fractional_as``: where that is ``"reference"`` they stand beside
    the search and are never incumbent.

    Raises:
        TrainingError: If every one of them ran out of memory or diverged.
        QRABOError: If every one of them failed: there is nothing to compare with, and likely something broken.
    """
    stages = ["baseline" if is_uniform(a) else fractional_as for a in baselines]
    found = run.evaluate_all([run.plan(a, stage) for a, stage in zip(baselines, stages, strict=True)])
    for e in found:
        headroom.lower(e, calibrates=True)
    if not any(e.ok for e in found):
        raise no_loss("every baseline failed, so that nothing can be compared", found)
    return [replace(e, stage=stage) for e, stage in zip(found, stages, strict=True) if stage == "baseline"]


def evaluate_references(run: TrialRunner, headroom: Headroom) -> list[Trial]:
    """Evaluate LoRA and QLoRA with rank 16 to report beside the baselines; they need not fit.

    A reference that is feasible in the search space counts as a baseline and is returned; the others are never
    incumbent. QLoRA keeps its round-to-nearest codes where the search's are others.
    """
    rules, lora, qlora = headroom.rules, uniform(run.setting.space.n_units, "fp16", 16), _qlora(run, "reference")
    given = [lora] if qlora.spec.codes else [lora, qlora.spec.allocation]
    fits = [set(a.formats) <= set(rules.formats) and max(a.ranks) <= rules.max_rank and rules.fits(a) for a in given]
    planned = [run.plan(a, "baseline" if ok else "reference") for a, ok in zip(given, fits, strict=True)]
    found = run.evaluate_all([*planned, qlora] if qlora.spec.codes else planned)
    return [replace(e, stage="baseline") for e, ok in zip(found, fits, strict=False) if ok]


def train_qlora(run: TrialRunner) -> None:
    """Train QLoRA beside a predicted allocation, on one training seed and for its loss on the test split: after the
    final fine-tune, for which nobody should wait longer."""
    with run.stage("reference"):
        run.reset_stopwatch()  # the final fine-tune is no time of the search
        planned = _qlora(run, COMPARISON, "test")
        is_new = planned.spec.key not in run.study.by_key
        run.evaluate_all([planned])
        if is_new and run.study.final is not None:
            run.forget_checkpoints()


def _qlora(run: TrialRunner, stage: str, split: str = "validation") -> PlannedTrial:
    """Return QLoRA's trial: its codes are round-to-nearest whatever the run's are."""
    return run.plan(uniform(run.setting.space.n_units, default_format(4).name, 16), stage, split=split,
                    codes=None if run.config.quantizer.rounding == "rtn" else "rtn")
