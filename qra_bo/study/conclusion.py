"""What follows the search: confirmation, rate and ranking checks, and the final fine-tune of the winner."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qra_bo.config.groups import LEAST_RANKED
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation
from qra_bo.study.choice import choose, chosen
from qra_bo.study.intervals import LEVEL, Interval, paired_interval, spearman
from qra_bo.study.objective import change_after
from qra_bo.study.state import loss_of
from qra_bo.study.trial_runner import TrialRunner, no_loss
from qra_bo.trials import TrialState
from qra_bo.utils.errors import OracleError, OutputError

LOOKS = (3, 4, 5)
"""Numbers of seeds after which a sequential confirmation may end."""
MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""
FINAL_FILES = ("adapter/adapter_model.safetensors", "quant_manifest.json")
"""What the final fine-tune leaves in the run's folder; it is trained again where one of these is gone."""


def confirm(run: TrialRunner, problem: SearchProblem, recommended: Sequence[Allocation]) -> None:
    """Compare the chosen mixed allocation (``choose``) with the best uniform one: unseen training seeds, test split.

    Both are trained as long as the effort affords (``Study.confirmation_steps``); what learned rates say of the rest is
    added to every difference before it is judged. Where no allocation is mixed the event is recorded without a trial.
    With ``effort.sequential`` seeds are added one by one until ``decided``. Nothing is done where the journal holds a
    confirmation that is no weaker (``_is_confirmed``).

    Raises:
        TrainingError: If no uniform allocation gave a loss.
    """
    if _is_confirmed(run):
        return
    reference, steps = run.study.best_uniform, run.study.confirmation_steps
    candidate = choose(run, recommended)
    if reference is None:
        raise no_loss("no uniform choice gave a loss, so that nothing can be confirmed", run.study.trials)
    if candidate is None:
        run.record_conclusion("confirmation",
                              confirmation(reference.allocation, reference.allocation, (), False, steps, 0.0))
        return
    rest = change_after(run, problem, steps)
    ahead = 0.0 if rest is None else rest.of(candidate.allocation) - rest.of(reference.allocation)
    seeds, first = run.setting.confirm_seeds, LOOKS[0] if run.config.effort.sequential else None
    for n in range(min(first or len(seeds), len(seeds)), len(seeds) + 1):
        pairs, failed = _pairs(run, candidate.allocation, reference.allocation, "confirmation", seeds[:n], steps)
        if failed or decided([c - r + ahead for _, c, r in pairs]):
            break
    if len(pairs) < 2:
        if not failed:
            run.warn("fewer than two training seeds of the confirmation gave a loss for both allocations: the winner "
                     "is not confirmed")
            return
        pairs = []  # too few for an interval: that the candidate failed alone decides
    run.record_conclusion("confirmation", confirmation(candidate.allocation, reference.allocation, pairs, failed, steps,
                                                       ahead))


def _is_confirmed(run: TrialRunner) -> bool:
    """Whether the last confirmation is as long, and on as many seeds, as this effort asks for.

    It is of the present candidate: another trial of the search makes it outdated. Trials of damaged lines are done
    again.
    """
    c, seeds = run.study.last.get("confirmation"), run.config.confirm.seeds
    if c is None or c["steps"] < run.study.confirmation_steps or run.journal.content.damaged:
        return False
    least = min(LOOKS[0], seeds) if run.config.effort.sequential else seeds
    return c["candidate"] == c["reference"] or c["candidate_failed"] or len(c["train_seeds"]) >= least


def decided(differences: Sequence[float]) -> bool:
    """Whether paired differences settle their sign before all seeds are trained: their interval excludes 0.

    Its level is that of all looks together at most 5 % wrong (Bonferroni over ``LOOKS``).
    """
    if len(differences) not in LOOKS:
        return False
    interval = paired_interval(differences, 1 - (1 - LEVEL) / len(LOOKS))
    return interval.low > 0 or interval.high < 0


def confirmation(candidate: Allocation, reference: Allocation, pairs: Sequence[tuple[int, float, float]],
                 failed: bool, steps: int, ahead: float) -> dict[str, Any]:
    """Return the fields of the journal's confirmation event.

    The winner is ``"mixed"`` where the candidate has the lower loss in the mean, ``ahead`` added, and never failed
    alone.

    Args:
        candidate: The best mixed allocation, or the reference itself where the search found none.
        reference: The best uniform allocation that fits.
        pairs: Training seed and test losses of candidate and reference, of seeds that gave both; none where both are
            one allocation, or where fewer than two gave both.
        failed: Whether the candidate failed where the reference did not.
        steps: Optimiser steps of all trainings.
        ahead: What learned rates add to the difference beyond ``steps`` (nats).
    """
    differences = [c - r for _, c, r in pairs]
    mixed = candidate != reference and not failed and sum(differences) + ahead * len(pairs) < 0
    return {"candidate": candidate.to_json(), "reference": reference.to_json(), **_compared(pairs),
            "differences": differences, "winner_kind": "mixed" if mixed else "uniform", "candidate_failed": failed,
            "split": "test", "steps": steps, "ahead": ahead}


def _compared(pairs: Sequence[tuple[int, float, float]]) -> dict[str, Any]:
    """Return seeds and losses of both sides with mean and interval of candidate - reference (nats)."""
    interval = paired_interval([c - r for _, c, r in pairs]) if pairs else Interval(0.0, 0.0, 0.0)
    return {"train_seeds": [seed for seed, _, _ in pairs], "candidate_losses": [c for _, c, _ in pairs],
            "reference_losses": [r for _, _, r in pairs], **asdict(interval)}


def _pairs(run: TrialRunner, candidate: Allocation, reference: Allocation, stage: str, seeds: Sequence[int],
           length: int, rate: float | None = None) -> tuple[list[tuple[int, float, float]], bool]:
    """Evaluate both allocations on unseen training ``seeds``; return those with both losses, and whether the candidate
    failed where the reference did not."""
    done = run.evaluate_all([run.plan(a, stage, learning_rate=rate, train_seed=seed, split="test", length=length)
                             for seed in seeds for a in (candidate, reference)])
    both = list(zip(seeds, done[::2], done[1::2], strict=True))
    pairs = [(seed, c.loss, r.loss) for seed, c, r in both if c.loss is not None and r.loss is not None]
    return pairs, any(r.ok and not c.ok for _, c, r in both)


def check_rates(run: TrialRunner) -> None:
    """Record whether the confirmation's difference holds at other learning rates than the calibrated one.

    Both allocations are trained again at every factor of ``effort.rate_factors``, on the confirmation's seeds and
    split. ``failed_at`` of the event holds the factors at which the candidate failed on a seed where the reference did
    not. Nothing is recorded without a confirmation, or where its two sides are one allocation.
    """
    last, calibrated = run.study.last.get("confirmation"), run.study.learning_rate
    if last is None or calibrated is None or last["candidate"] == last["reference"]:
        return
    candidate, reference = (Allocation.from_json(last[side]) for side in ("candidate", "reference"))
    rates, failed_at = [], []
    for factor in run.config.effort.rate_factors:
        pairs, failed = _pairs(run, candidate, reference, "rate_check", run.setting.confirm_seeds, last["steps"],
                               factor * calibrated)
        if failed:
            failed_at.append(factor)
        if len(pairs) < 2:
            run.warn(f"fewer than two training seeds gave a loss for both allocations at {factor:g} times the "
                     "calibrated learning rate")
            continue
        rates.append({"factor": factor, **_compared(pairs)})
    run.record_conclusion("rate_check", {"candidate": last["candidate"], "reference": last["reference"],
                                         "rates": rates, "failed_at": failed_at})


def check_ranking(run: TrialRunner) -> None:
    """Record whether the ranking of the best allocations holds at a longer training.

    The winner, the best uniform allocation and the next best points, ``effort.ranking_top`` in all, are trained
    ``confirm.ranking_factor`` times as long, with the search's training seed; the event holds both losses of each and
    their Spearman correlation. Fewer than ``LEAST_RANKED`` would say nothing: none is trained.
    """
    steps, study = run.config.fidelity.high * run.config.confirm.ranking_factor, run.study
    leaders = [chosen(study), study.best_uniform]
    order = {e.allocation: e for e in (*leaders, *study.ranked) if e is not None}
    top = sorted(list(order.values())[:run.config.effort.ranking_top], key=lambda e: (loss_of(e), e.id))
    if len(top) < LEAST_RANKED:
        return
    longer = run.evaluate_all([run.plan(e.allocation, "ranking_check", length=steps) for e in top])
    finished = [(e, long) for e, long in zip(top, longer, strict=True) if long.ok]
    if len(finished) < LEAST_RANKED:
        run.warn(f"the ranking check has {len(finished)} losses to compare, fewer than {LEAST_RANKED}: it says nothing")
        return
    search_losses, losses = [loss_of(e) for e, _ in finished], [loss_of(long) for _, long in finished]
    run.record_conclusion("ranking_check", {
        "steps": steps, "fingerprints": [e.allocation.fingerprint for e, _ in finished],
        "losses": losses, "search_losses": search_losses, "spearman": spearman(search_losses, losses)})


def deliver(run: TrialRunner, winner: Allocation) -> Allocation:
    """Fine-tune the winner, unless the journal has its final fine-tune and the files are there; return what was
    delivered.

    Raises:
        OutputError: If none of the best allocations measured within the budget.
        TrainingError: If the final training did not end well.
    """
    study, folder = run.study, run.journal.path.parent
    candidates = study.untried or tuple(e.allocation for e in study.ranked)
    by_name = {a.fingerprint: a for a in (*candidates, winner)}
    final = study.last.get("final")
    if final is None and "end" in study.last:
        return winner  # it was ended without
    if final is None or not all((folder / name).is_file() for name in FINAL_FILES):
        first = winner if final is None else by_name.get(final["delivered"], winner)
        others = [a for a in candidates if a not in (winner, first)]
        with run.stage("final"):
            delivered = first_that_fits(run, [first, *others])
            fields = fine_tune(run, delivered, folder)
            run.record("final", {**fields, "adapter": "adapter", "winner": winner.fingerprint,
                                 "delivered": delivered.fingerprint})
            run.forget_checkpoints()
        final = study.last["final"]
    if final["delivered"] not in by_name:
        raise OracleError(f"the final fine-tune delivered {final['delivered']}, which is no candidate of the run")
    return by_name[final["delivered"]]


def first_that_fits(run: TrialRunner, ranked: Sequence[Allocation]) -> Allocation:
    """Measure the peak of the best allocations in their order; return the first within the budget.

    Raises:
        OutputError: If none of ``MEASURED_CANDIDATES`` is.
    """
    budget, predict, seed = run.budget_bytes, run.setting.predictor, run.setting.train_seed
    candidates = ranked[:MEASURED_CANDIDATES]
    for a in candidates:
        found = run.executor.call("measure_peak", {"allocation": a.to_json(), "train_seed": seed}, run.progress)
        measured, ran_out = found["measured_bytes"], found["state"] == TrialState.OOM.value
        fits = not ran_out and (measured is None or measured <= budget)
        run.record("measured", {"allocation": a.to_json(), "predicted_bytes": predict(a), "measured_bytes": measured,
                                "scope": run.config.memory.scope, "fits": fits, "peaks": found["peaks"]})
        if fits:
            return a
        how = f"did not fit on the device ({found['message']})" if ran_out else \
            f"measured {measured:,}: over the budget of {budget:,}"
        after = "" if a == candidates[-1] else "; the next best is taken"
        run.record("warning", {"message": f"{a.fingerprint} was predicted to need {predict(a):,} bytes and "
                                          f"{how}{after}"})
    what = "the only allocation did not measure" if len(candidates) == 1 else \
        f"none of the {len(candidates)} best allocations measured"
    raise OutputError(f"{what} within the budget of {budget:,} bytes; the journal holds what each needs: raise the "
                      "budget by that, or lower train.batch")


def fine_tune(run: TrialRunner, allocation: Allocation, folder: Path) -> dict[str, object]:
    """Train and save ``allocation`` in ``folder``; return its steps, the step that is delivered, the curve of its
    validation loss, the test loss with its standard error (nats), and a text before and after, if there is one."""
    final = run.executor.call("finalise", {
        "allocation": allocation.to_json(), "options": run.config.final.model_dump(),
        "train_seed": run.setting.train_seed, "learning_rate": run.study.learning_rate,
        "out": str(folder.absolute()),  # a worker of a cluster has another working directory
        "model_cfg": run.config.model}, run.progress)
    return {**{key: final[key] for key in ("steps", "planned_steps", "kept_step", "curve", "loss", "loss_se")},
            "sample": final.get("sample")}
