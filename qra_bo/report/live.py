"""Progress of a run for people: dated lines."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from rich.console import Console

from qra_bo.execution.base import ProfileResult
from qra_bo.memory.budget import format_size
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import activity
from qra_bo.report.text import duration, rough
from qra_bo.space import Allocation
from qra_bo.study import events as ev
from qra_bo.study.header import Effort, Header
from qra_bo.study.state import UNSEARCHED_STAGES, Study
from qra_bo.study.verdict import verdict_card
from qra_bo.trials import Trial

QUIET_SECONDS = 20.0
"""Least time between two plain progress lines of one activity."""
RATE_SECONDS = 5.0
"""Least time by which the rate of an activity is judged."""


def line_of(record: object, study: Study, before: Trial | None) -> str | None:
    """Return the line that describes an event whose record ``study`` holds already, ``None`` if it needs none;
    ``before`` was the incumbent until then."""
    match record:
        case Header():
            return title(record)
        case Effort() as e:
            return f"effort is now {e.effort}"
        case ev.Stage(stage, "start"):
            return f"stage {stage}"
        case ev.FinishedTrial(trial):
            return _of_trial(trial, study, before)
        case ProfileResult() as r:
            p = r.profile
            return f"profile of {len(p.units)} units and {len(p.formats)} formats in {duration(r.seconds)}"
        case ev.Confirmation() | ev.Prediction():
            return verdict_card(study).finding
        case ev.Untuned() as u:
            return f"untuned model: test loss {u.loss:.4f}"
        case ev.Calibration() as c:
            return f"learning rate {c.learning_rate:.3g} (rule {c.rule})"
        case ev.Stopped() as s:
            return f"search ended early: its next proposal gains with a chance of {s.chance:.0%}, below {s.least:.0%}"
        case ev.Objective() as o:
            return (f"the loss after {o.steps:,} steps, as in the final fine-tune, is minimised: losses of trials, "
                    f"after {o.before}, are carried to it by learned rates")
        case ev.Measured() as m:
            measured = "not measured" if m.measured_bytes is None else f"{format_size(m.measured_bytes)} measured"
            fits = "fits" if m.fits else "does NOT fit"
            return f"memory: {format_size(m.predicted_bytes)} predicted, {measured}, {fits}"
        case ev.Final() as f:
            early = "" if f.steps == f.planned_steps else f" of {f.planned_steps}, ended early"
            return f"final fine-tune: test loss {f.loss:.4f} of step {f.kept_step}, {f.steps} steps{early}"
        case ev.Warned(message):
            return f"warning: {message}"
        case ev.End(status):
            return f"ended: {status}"
    return None


def title(h: Header) -> str:
    """Return model, budget and effort of a run."""
    real = "" if h.trains else f" [{h.oracle} results: no model is trained]"
    how = f"effort {h.effort}, {h.method}{real}" if h.given is None else f"without a search: {h.given.reason}"
    return f"{h.model} within {format_size(h.budget_bytes)} ({h.scope}), {how}"


def _of_trial(e: Trial, study: Study, before: Trial | None) -> str:
    m, best = e.result, study.incumbent
    if e.loss is None:
        return f"{e.stage}: {_of(e.allocation, study)} {m.state.value} ({m.message or 'no loss'})"
    mark = "  <- best so far" if best is not None and best is not before and best.id == e.id else ""
    return (f"{e.stage}: {_of(e.allocation, study)} loss {e.loss:.4f} after {e.spec.steps} steps "
            f"at learning rate {e.spec.learning_rate:.2g}, {format_size(e.predicted_bytes)}, {m.seconds:.1f} s{mark}")


def _of(allocation: Allocation, study: Study) -> str:
    """``4-bit r16`` for a uniform allocation, else the average bits and rank."""
    bits, ranks = [parse_format(f).bits for f in allocation.formats], allocation.ranks
    if len(set(bits)) == 1 and len(set(ranks)) == 1:
        return f"{bits[0]}-bit r{ranks[0]}"
    return f"mixed ({study.header.average_bits(bits):.2f} bits, rank {sum(ranks) / len(ranks):.1f})"


class LiveView:
    """Listener that shows a run: call it with every journal event, and ``progress`` in between.

    Events before it was made belong to earlier sessions.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.study, self._clock = console, Study(), clock
        self._born = datetime.now().astimezone() - timedelta(milliseconds=1)  # as a journal rounds times
        self._last_progress: tuple[str, float] = ("", float("-inf"))
        self._activity: tuple[str, float, int] = ("", 0.0, 0)  # its name, its beginning, and how far it was by then
        self._done = 0

    def __call__(self, event: ev.Event) -> None:
        study, before = self.study, self.study.incumbent
        study.add(event)
        if event.time < self._born:  # a resumed run replays its journal
            return
        if (line := line_of(event.record, study, before)) is not None:
            record, eta, left = event.record, study.eta_seconds, ""
            if eta is not None and isinstance(record, ev.FinishedTrial) and record.trial.stage not in UNSEARCHED_STAGES:
                share = min(100, 100 * study.search_cost.tokens / study.planned_cost)
                left = f"  [{share:.0f} % of the planned search, about {rough(eta)} left]"
            self._print(line + left)

    def resumes(self, study: Study) -> None:
        """Say that a run goes on, before its model is loaded."""
        n = len(study.trials)
        self._print(f"resumed{f', {n} trials are done' if n else ''}: {title(study.header)}")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` parts of ``what`` are done, at most every 20 s, and by the rate since its
        beginning how long the others take."""
        now, name = self._clock(), activity(what)
        if name != self._activity[0] or done < self._done:  # another one, or the same again
            self._activity = (name, now, done)
        (_, since, before), self._done = self._activity, done
        if name != self._last_progress[0] or now - self._last_progress[1] >= QUIET_SECONDS:
            self._last_progress = (name, now)
            known = done > before and done < total and now - since >= RATE_SECONDS
            left = f", about {rough((total - done) * (now - since) / (done - before))} left" if known else ""
            self._print(f"{what}: {done} of {total}{left}")

    def _print(self, line: str) -> None:
        self.console.print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", markup=False, highlight=False, soft_wrap=True)
