"""Experiment trackers that follow a search: what it knows after each evaluation, not the losses of single steps."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.report.live import CLOCK_GRAIN
from qra_bo.report.sinks import SINKS, Sink
from qra_bo.space import average_bits
from qra_bo.study.state import Study, loss_of

log = logging.getLogger(__name__)
MB = 1e6
PARAMETERS = ("model", "budget_text", "budget_bytes", "scope", "granularity", "method", "effort", "oracle", "seed",
              "config_sha256", "version")


def metrics_of(study: Study, event: Mapping[str, Any]) -> dict[str, float]:
    """What one event adds, as numbers by name; empty where it adds none.

    Args:
        study: The run with ``event`` folded in.
        event: One of its journal.
    """
    kind = event["event"]
    if kind == "trial":
        return _after_evaluation(study)
    if kind == "confirmation":
        return {f"confirmation/{key}": float(event[key]) for key in ("mean", "low", "high")}
    if kind == "surrogate_check":
        return {f"surrogate/{key}": float(event[key]) for key in ("spearman", "spearman_good", "nll", "coverage_50",
                                                                  "coverage_90") if event.get(key) is not None}
    if kind == "measured" and event["measured_bytes"] is not None:
        return {f"memory/{name}_mb": event[f"{name}_bytes"] / MB for name in ("predicted", "measured")}
    return {"final/loss": float(event["loss"])} if kind == "final" else {}


def _after_evaluation(study: Study) -> dict[str, float]:
    e, best, uniform = study.trials[-1], study.incumbent, study.best_uniform
    bits, n = average_bits(e.bits, np.array(study.header["unit_numel"])), len(e.allocation)
    found = {"evaluation/loss": e.loss, "evaluation/seconds": e.result.seconds,
             "evaluation/mean_bits": bits, "evaluation/mean_rank": sum(e.allocation.ranks) / n,
             "evaluation/predicted_mb": e.predicted_bytes / MB,
             "search/cost_equivalents": study.search_cost.tokens / float(study.header["full_trial_tokens"]),
             "search/best_loss": None if best is None else loss_of(best),
             "search/best_uniform_loss": None if uniform is None else loss_of(uniform),
             "search/difference": None if best is None or uniform is None else loss_of(best) - loss_of(uniform),
             "search/failures": float(sum(not x.ok for x in study.trials))}
    return {name: float(value) for name, value in found.items() if value is not None}


class SearchLogger:
    """Listens to a run and hands its metrics to a tracker, at the number of evaluations so far.

    Events of earlier sessions are folded in and not told again. A tracker that fails after it began is warned of once
    and left alone: a run does not end for it.

    Args:
        name: Of ``SINKS``.
        folder: The run's folder.
        project: Under which name the tracker files it.
        where: Where it keeps its files or which server it talks to; ``None``: below ``folder``.
        born: Events from before this moment are history (now, unless tests give another).

    Raises:
        MissingExtraError: If the tracker's package is not installed.
    """

    def __init__(self, name: str, folder: Path, project: str, where: str | None, born: datetime | None = None) -> None:
        self._name, self._study, self._failed = name, Study(), False
        self._open: Callable[[Mapping[str, Any]], Sink] = SINKS[name](folder, project, where)
        self._born = (datetime.now().astimezone() if born is None else born) - CLOCK_GRAIN
        self._sink: Sink | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._study.add(event)
        if self._failed or datetime.fromisoformat(event["time"]) < self._born:
            return
        try:
            if self._sink is None:
                self._sink = self._open({key: self._study.header[key] for key in PARAMETERS})
            found = metrics_of(self._study, event)
            if found:
                self._sink.log(found, len(self._study.trials))
            if event["event"] == "end":
                self.close()
        except Exception as error:  # a tracker's server, disk or quota: nothing that a search should end for
            self._failed = True
            log.warning("logger=%s failed and is left alone from here on: %s: %s", self._name, type(error).__name__,
                        error)

    def close(self) -> None:
        """Let the tracker write what it holds; nothing is logged afterwards."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
            self._failed = True
