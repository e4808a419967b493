"""Comparison of the best mixed allocation with the best uniform one, at the length that the run minimises."""

from collections.abc import Sequence

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.files import load_rates
from qra_bo.searchers.rates.model import change, change_of_difference
from qra_bo.sensitivity.change import Change
from qra_bo.space import Allocation
from qra_bo.study.events import Choice, Confirmation, Objective
from qra_bo.study.intervals import LEVEL, Interval, interval_of
from qra_bo.study.setting import FINAL
from qra_bo.study.state import loss_of
from qra_bo.study.trial_runner import TrialRunner, no_loss
from qra_bo.trials import Trial

FIRST_LOOK = 3
"""Number of seeds after which a sequential confirmation may end for the first time."""
Pair = tuple[Trial, Trial]
"""Trials of candidate and reference on one training seed, both with a loss."""


def settle_length(run: TrialRunner, problem: SearchProblem) -> None:
    """Record the length that the run minimises the loss of, where that is not the one of its trials.

    It is the same where ``search.length=trial``, nothing is fine-tuned at the end, or the final fine-tune is no longer
    than a trial. Raises ``ConfigError`` if the file of ``surrogate.rates`` can't be read or holds no rates.
    """
    config, before = run.config, problem.high_steps
    sequences = run.study.provenance.get("train_sequences")
    if run.study.objective is not None or config.search.length != FINAL or sequences is None:
        return
    steps = config.final.length(sequences, config.train.step_sequences)
    if steps > before:
        run.record(Objective(steps, before, _change(run, problem, before, steps)))


def _change(run: TrialRunner, problem: SearchProblem, before: int, after: int) -> Change:
    return change(load_rates(run.config.surrogate.rates), problem, before, after)


def choose(run: TrialRunner, recommended: Sequence[Allocation]) -> Trial | None:
    """Return the mixed point to confirm, and record by what it was chosen; ``None`` where no point is mixed.

    The first mixed allocation that the method recommends is taken where its surrogate passes its own leave-one-out
    check, or has none; else the one of least measured loss.
    """
    study = run.study
    points = (study.point(a) for a in recommended)
    first = next((p for p in points if p is not None and not study.counts_as_uniform(p)), None)
    least, check = study.best_mixed, study.surrogate_check
    if least is None:
        return None
    if first is None or (check is not None and check.fails and first.allocation != least.allocation):
        by, taken, other = "loss", least, first
    elif first.allocation == least.allocation:
        by, taken, other = "agreement", least, None
    else:
        by, taken, other = "surrogate", first, least
    run.conclude(Choice(by, taken.allocation, None if other is None else other.allocation))
    return taken


def confirm(run: TrialRunner, problem: SearchProblem, recommended: Sequence[Allocation]) -> None:
    """Compare the chosen mixed allocation (``choose``) with the best uniform one: unseen training seeds, test split.

    Both are trained as long as the effort affords (``Study.confirmation_steps``); what learned rates say of the rest
    decides where the measured interval includes 0. Where no allocation is mixed the event is recorded without a trial.
    With ``effort.sequential`` seeds are added one by one until the interval excludes 0, at the level at which all looks
    together hold 95 % (Bonferroni). Nothing is done where the journal holds a confirmation that is no weaker
    (``_is_confirmed``). Raises ``TrainingError`` if no uniform allocation gave a loss.
    """
    if _is_confirmed(run):
        return
    study, seeds = run.study, run.setting.confirm_seeds
    reference, steps = study.best_uniform, study.confirmation_steps
    candidate = choose(run, recommended)
    if reference is None:
        raise no_loss("no uniform choice gave a loss, so that nothing can be confirmed", study.trials)
    if candidate is None:
        run.conclude(confirmation(reference.allocation, reference.allocation, (), False, steps))
        return
    sides = candidate.allocation, reference.allocation
    ahead, ahead_sd = _ahead(run, problem, *sides, steps)
    looks = range(_fewest_seeds(run), len(seeds) + 1)
    level = 1 - (1 - LEVEL) / len(looks)
    for n in looks:
        pairs, failed = _pairs(run, *sides, seeds[:n], steps)
        if failed or (len(pairs) > 1 and not _interval(pairs, level)[0].includes_zero):
            break
    if len(pairs) < 2:
        if not failed:
            run.warn("fewer than two training seeds of the confirmation gave a loss for both allocations: the winner "
                     "is not confirmed")
            return
        pairs = []  # too few for an interval: that the candidate failed alone decides
    run.conclude(confirmation(*sides, pairs, failed, steps, ahead, ahead_sd, level))


def _ahead(run: TrialRunner, problem: SearchProblem, candidate: Allocation, reference: Allocation,
           steps: int) -> tuple[float, float]:
    """Return what learned rates add to the difference after ``steps`` up to the length that the run minimises, with its
    standard deviation (nats); 0 where nothing is beyond."""
    longer, seen = run.study.objective_steps, Observations(problem)
    rows = seen.position(candidate), seen.position(reference)
    if steps >= longer or rows[0] is None or rows[1] is None:
        return 0.0, 0.0
    return change_of_difference(load_rates(run.config.surrogate.rates), problem, rows[0], rows[1], steps, longer)


def _fewest_seeds(run: TrialRunner) -> int:
    """Return the number of seeds after which a confirmation of this effort may end."""
    seeds = run.config.confirm.seeds
    return min(FIRST_LOOK, seeds) if run.config.effort.sequential else seeds


def _is_confirmed(run: TrialRunner) -> bool:
    """Whether the last confirmation is as long, and on as many seeds, as this effort asks for.

    It is of the present candidate: another trial of the search makes it outdated. Trials of damaged lines are done
    again.
    """
    c = run.study.confirmation
    if c is None or c.steps < run.study.confirmation_steps or run.journal.content.damaged:
        return False
    return c.candidate == c.reference or c.candidate_failed or len(c.train_seeds) >= _fewest_seeds(run)


def _interval(pairs: Sequence[Pair], level: float) -> tuple[Interval, bool]:
    """Return the interval of candidate - reference, and whether it is over text too (``interval_of``)."""
    candidate, reference = ([e.result.sequence_losses for e in side] for side in zip(*pairs, strict=True))
    return interval_of([loss_of(c) - loss_of(r) for c, r in pairs], candidate, reference, level)


def confirmation(candidate: Allocation, reference: Allocation, pairs: Sequence[Pair], failed: bool, steps: int,
                 ahead: float = 0.0, ahead_sd: float = 0.0, level: float = LEVEL) -> Confirmation:
    """Return the event of a comparison; ``pairs`` are those of seeds that gave both losses, ``level`` is that of its
    interval.

    What learned rates expect of a longer training decides where the measured interval includes 0, and never against
    one that does not.
    """
    interval, over_text = _interval(pairs, level) if pairs else (Interval(0.0, 0.0, 0.0), False)
    mixed = candidate != reference and not failed and \
        interval.mean + (ahead if interval.includes_zero else 0.0) < 0
    return Confirmation(
        tuple(c.spec.train_seed for c, _ in pairs), tuple(loss_of(c) for c, _ in pairs),
        tuple(loss_of(r) for _, r in pairs), interval.mean, interval.low, interval.high, over_text, candidate,
        reference, "mixed" if mixed else "uniform", candidate_failed=failed, split="test", steps=steps, ahead=ahead,
        ahead_sd=ahead_sd)


def _pairs(run: TrialRunner, candidate: Allocation, reference: Allocation, seeds: Sequence[int],
           length: int) -> tuple[list[Pair], bool]:
    """Evaluate both allocations on unseen training ``seeds``; return those with both losses, and whether the candidate
    failed where the reference did not."""
    done = run.evaluate_all([run.plan(a, "confirmation", train_seed=seed, split="test", length=length)
                             for seed in seeds for a in (candidate, reference)])
    both = list(zip(done[::2], done[1::2], strict=True))
    return [pair for pair in both if all(e.ok for e in pair)], any(r.ok and not c.ok for c, r in both)


