"""Choice of the mixed allocation that a run confirms and delivers: by the surrogate, or by measured losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qra_bo.space import Allocation
from qra_bo.study.setting import training_seeds
from qra_bo.study.state import Study, loss_of
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.trials import Trial

LEAST_AGREEMENT = 0.0
"""Spearman correlation of left-out losses, over their better half, above which the surrogate's ranking is followed."""


def choose(run: TrialRunner, recommended: Sequence[Allocation]) -> Trial | None:
    """Return the mixed point to confirm, and record by what it was chosen; ``None`` where no point is mixed.

    The first mixed allocation that the method recommends is taken where its surrogate passes its own leave-one-out
    check, or has none. Else measured losses decide: where the recommended one and the one of least loss differ, both
    are trained again on one more training seed, and the lower mean of both seeds wins; one that fails there alone
    loses. The event ``choice`` holds ``by`` (``"surrogate"``, ``"loss"`` or ``"agreement"``), ``candidate``, ``other``
    (the one that was not taken, if any), ``spearman_good`` and ``losses`` (of candidate and other, by training seed,
    where repeats of both gave one).
    """
    study = run.study
    points = (study.point(a) for a in recommended)
    ours = next((p for p in points if p is not None and not study.counts_as_uniform(p)), None)
    least = study.best_mixed
    if least is None:
        return None
    check = study.last.get("surrogate_check")
    agreement = None if check is None else check.get("spearman_good")
    if ours is None or ours.allocation == least.allocation:
        return _recorded(run, "loss" if ours is None else "agreement", least, None, agreement)
    if not fails(check):
        return _recorded(run, "surrogate", ours, least, agreement)
    losses = _repeated(run, least, ours)
    longer = 2 * (study.carried(ours.allocation) - study.carried(least.allocation))
    first, other = (ours, least) if sum(losses[ours]) + longer < sum(losses[least]) else (least, ours)
    both = [losses[first], losses[other]]
    return _recorded(run, "loss", first, other, agreement, both if np.isfinite(both).all() else ())


def fails(check: Mapping[str, Any] | None) -> bool:
    """Whether a surrogate's check was made and does not support its ranking of the better half."""
    if check is None or "spearman_good" not in check:
        return False
    agreement = check["spearman_good"]
    return agreement is None or float(agreement) <= LEAST_AGREEMENT


def _repeated(run: TrialRunner, *points: Trial) -> dict[Trial, list[float]]:
    """Return the points' losses on the search's training seed and on one more, infinite where that failed."""
    config = run.config
    seed = training_seeds(config.seed, config.confirm.seeds + 1)[1][-1]  # none of the confirmation's
    found = run.evaluate_all([run.plan(e.allocation, "repeat", train_seed=seed) for e in points])
    return {e: [loss_of(e), loss_of(again)] for e, again in zip(points, found, strict=True)}


def _recorded(run: TrialRunner, by: str, candidate: Trial, other: Trial | None, agreement: float | None,
              losses: Sequence[Sequence[float]] = ()) -> Trial:
    run.record_conclusion("choice", {
        "by": by, "candidate": candidate.allocation.to_json(),
        "other": None if other is None else other.allocation.to_json(), "spearman_good": agreement,
        "losses": [list(pair) for pair in losses]})
    return candidate


def chosen(study: Study) -> Trial | None:
    """Return the point of the last choice; ``None`` before one."""
    last = study.last.get("choice")
    return None if last is None else study.point(Allocation.from_json(last["candidate"]))
