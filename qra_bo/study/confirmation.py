"""Comparison of the best mixed allocation with the best simple and uniform ones, at the length that the run minimises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import change, change_of_difference, load_rates
from qra_bo.space import Allocation
from qra_bo.study.events import Choice, Compared, Confirmation, Objective
from qra_bo.study.intervals import LEVEL, interval_of
from qra_bo.study.setting import FINAL
from qra_bo.study.state import FRACTIONAL, UNIFORM, loss_of
from qra_bo.study.trial_runner import TrialRunner, no_loss
from qra_bo.trials import Trial

FIRST_LOOK = 3
"""Number of seeds after which a sequential confirmation may end for the first time."""


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
        run.record(Objective(steps, before, change(load_rates(config.surrogate.rates), problem, before, steps)))


def choose(run: TrialRunner, recommended: Sequence[Allocation]) -> Trial | None:
    """Return the mixed point to confirm, and record by what it was chosen; ``None`` where no point is mixed.

    The first mixed allocation that the method recommends is taken where its surrogate passes its own leave-one-out
    check, or has none; else the one of least measured loss.
    """
    study = run.study
    points = (study.point(a) for a in recommended)
    first = next((p for p in points if p is not None and not study.is_simple(p)), None)
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
    """Compare the chosen mixed allocation (``choose``) with the best simple and the best uniform choice: unseen
    training seeds, test split.

    All are trained as long as the effort affords (``Study.confirmation_steps``). With ``effort.sequential`` seeds are
    added one by one until the interval of the difference that decides excludes 0, at the level at which all looks
    together hold 95 % (Bonferroni). Nothing is done where the journal holds a confirmation that is no weaker
    (``_is_confirmed``). Raises ``TrainingError`` if no uniform allocation gave a loss.
    """
    if _is_confirmed(run):
        return
    study, seeds, steps = run.study, run.setting.confirm_seeds, run.study.confirmation_steps
    uniform, simple, candidate = study.best_uniform, study.best_simple, choose(run, recommended)
    if uniform is None or simple is None:
        raise no_loss("no uniform choice gave a loss, so that nothing can be confirmed", study.trials)
    arms = list(dict.fromkeys(e.allocation for e in (candidate, simple, uniform) if e is not None))
    mixed = None if candidate is None else candidate.allocation
    looks = range(_fewest_seeds(run), len(seeds) + 1)
    level = 1 - (1 - LEVEL) / len(looks)
    found = confirmation({}, None, uniform.allocation, uniform.allocation, steps)
    for n in looks if len(arms) > 1 else ():
        done = run.evaluate_all([run.plan(a, "confirmation", train_seed=seed, split="test", length=steps)
                                 for seed in seeds[:n] for a in arms])
        losses = {a: done[i::len(arms)] for i, a in enumerate(arms)}
        found = confirmation(losses, mixed, simple.allocation, uniform.allocation, steps, level)
        deciding = found if mixed else found.versus_uniform
        if found.candidate_failed or (deciding is not None and deciding.train_seeds and not deciding.includes_zero):
            break
    if mixed and not found.candidate_failed and not found.train_seeds:
        run.warn("fewer than two training seeds of the confirmation gave a loss for both allocations: the winner is "
                 "not confirmed")
        return
    seen, longer = Observations(problem), study.objective_steps
    rows = seen.position(found.candidate), seen.position(found.reference)
    if steps < longer and rows[0] is not None and rows[1] is not None:
        ahead, ahead_sd = change_of_difference(load_rates(run.config.surrogate.rates), problem, rows[0], rows[1], steps,
                                               longer)
        found = replace(found, ahead=ahead, ahead_sd=ahead_sd)
    run.conclude(found)


def _fewest_seeds(run: TrialRunner) -> int:
    """Return the number of seeds after which a confirmation of this effort may end."""
    seeds = run.config.confirm.seeds
    return min(FIRST_LOOK, seeds) if run.config.effort.sequential else seeds


def _is_confirmed(run: TrialRunner) -> bool:
    """Whether the last confirmation is as long, and on as many seeds, as this effort asks for. It is of the present
    candidate: another trial makes it outdated. Trials of damaged lines are done again."""
    c = run.study.confirmation
    if c is None or c.steps < run.study.confirmation_steps or run.journal.content.damaged:
        return False
    seeds = c.train_seeds if c.candidate != c.reference or c.versus_uniform is None else c.versus_uniform.train_seeds
    return c.candidate == c.uniform or c.candidate_failed or len(seeds) >= _fewest_seeds(run)


def confirmation(losses: Mapping[Allocation, Sequence[Trial]], mixed: Allocation | None, simple: Allocation,
                 uniform: Allocation, steps: int, level: float = LEVEL) -> Confirmation:
    """Return the event of a comparison.

    Args:
        losses: Trials of every allocation that was compared, of the same seeds in order.
        mixed: The chosen mixed allocation; ``None`` where no point is mixed.
        simple: The best simple choice of the search.
        uniform: The best uniform choice of the search.
        steps: Optimiser steps of the trainings.
        level: Coverage of the intervals.
    """
    beside, worse = _compared(losses, simple, uniform, level)
    better = beside.mean < 0 or _compared(losses, uniform, simple, level)[1]
    reference = simple if better and not worse else uniform
    candidate = mixed or reference
    found, failed = _compared(losses, candidate, reference, level)
    won = candidate != reference and not failed and found.high < 0
    winner = candidate if won else reference
    versus = _compared(losses, winner, uniform, level)[0] if reference != uniform else None
    kind = "mixed" if won else UNIFORM if reference == uniform else FRACTIONAL
    return Confirmation(
        **{f.name: getattr(found, f.name) for f in fields(Compared)}, candidate=candidate, reference=reference,
        uniform=uniform, winner_kind=kind, candidate_failed=failed, steps=steps, ahead=0.0, ahead_sd=0.0,
        versus_uniform=versus)


def _compared(losses: Mapping[Allocation, Sequence[Trial]], candidate: Allocation, reference: Allocation,
              level: float) -> tuple[Compared, bool]:
    """Return the comparison on the seeds that gave both losses, without any where fewer than two did, and whether the
    candidate failed where the reference did not."""
    both = [] if candidate == reference else list(zip(losses[candidate], losses[reference], strict=True))
    failed, pairs = any(r.ok and not c.ok for c, r in both), [(c, r) for c, r in both if c.ok and r.ok]
    if len(pairs) < 2:
        return Compared(0.0, 0.0, 0.0, (), (), (), False, level), failed
    ours, theirs = ([e.result.sequence_losses for e in side] for side in zip(*pairs, strict=True))
    interval, over_text = interval_of([loss_of(c) - loss_of(r) for c, r in pairs], ours, theirs, level)
    return Compared(**asdict(interval), train_seeds=tuple(c.spec.train_seed for c, _ in pairs), over_text=over_text,
                    level=level, candidate_losses=tuple(loss_of(c) for c, _ in pairs),
                    reference_losses=tuple(loss_of(r) for _, r in pairs)), failed
