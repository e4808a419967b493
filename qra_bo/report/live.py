"""What a person sees while a run goes on: a live view on a terminal, dated lines elsewhere."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qra_bo.oracle.protocol import FINETUNE
from qra_bo.report.text import duration, rough, signed, size
from qra_bo.study.cost import cost_of
from qra_bo.study.state import Study, loss_of
from qra_bo.trials import Fidelity, Trial

KEPT_EVENTS = 6
CLOCK_GRAIN = timedelta(milliseconds=1)
"""Resolution of the times in a journal."""
QUIET_SECONDS = 20.0
"""Least time between two plain progress lines of one activity."""


class RunState:
    """What can be said of a run from the events seen so far; fed one at a time, no clock of its own.

    Attributes:
        study: The events, folded.
        stage: The stage that runs.
        title: Model, budget, effort and method in words; empty before the header.
        planned: What search, references, confirmation and ranking check may spend together (training tokens), or
            ``None`` before the header.
    """

    def __init__(self) -> None:
        self.study = Study()
        self.stage = "start"
        self.title = ""
        self.planned: float | None = None
        self._after = 0.0
        self._seconds: dict[Fidelity, deque[float]] = {f: deque(maxlen=25) for f in Fidelity}
        self._paced = (0.0, 0.0)

    def feed(self, event: Mapping[str, Any]) -> str | None:
        """Take one journal event; returns the line that tells of it, or ``None`` if there is nothing to tell."""
        best = self.study.incumbent
        self.study.add(event)
        kind = event["event"]
        if kind == "trial":
            return self._evaluation(best)
        handler = {"header": self._header, "extension": self._extension, "stage": self._stage,
                   "profile": self._profile, "calibration": self._calibration, "confirmation": self._confirmation,
                   "measured": self._measured, "final": self._final, "warning": self._warning,
                   "end": self._end}.get(kind)
        return None if handler is None else handler(event)

    @property
    def spent(self) -> float:
        """Cost so far, training tokens."""
        return self.study.cost.tokens

    def eta_seconds(self) -> float | None:
        """Time that the rest of the planned cost takes at the measured seconds a training token, or ``None``."""
        seconds, tokens = self._paced
        if self.planned is None or tokens == 0:
            return None
        return max(0.0, self.planned - self.spent) * seconds / tokens

    def pace(self) -> str:
        """Median seconds of an evaluation by fidelity, e.g. ``20.3 s at high, 5.1 s at low fidelity``."""
        medians = ((f.value, statistics.median(s)) for f, s in self._seconds.items() if s)
        told = ", ".join(f"{seconds:.1f} s at {name}" for name, seconds in sorted(medians))
        return f"{told} fidelity" if told else ""

    def _header(self, e: Mapping[str, Any]) -> str:
        self._after = float(e["full_trial_tokens"]) * evaluations_after_search(e["config"])
        self.planned = float(e["planned_cost"]) + self._after
        real = "" if e["oracle"] == FINETUNE else f" [{e['oracle']} results: no model is trained]"
        self.title = (f"{e['model']} within {size(e['budget_bytes'])} ({e['scope']}), effort {e['effort']}, "
                      f"{e['method']}{real}")
        return self.title

    def _extension(self, e: Mapping[str, Any]) -> str:
        self.planned = float(e["planned_cost"]) + self._after
        return f"effort is now {e['effort']}"

    def _stage(self, e: Mapping[str, Any]) -> str | None:
        if e["state"] == "end":
            return None
        self.stage = str(e["stage"])
        return f"stage {self.stage}"

    def _evaluation(self, before: Trial | None) -> str:
        e = self.study.trials[-1]
        m, name = e.result, _name(e)
        tokens = cost_of(e).tokens
        self._paced = (self._paced[0] + m.seconds, self._paced[1] + tokens)
        if not e.ok or e.loss is None:
            return f"{e.stage}: {name} {e.result.state.value} ({m.message or 'no loss'})"
        self._seconds[e.fidelity].append(m.seconds)
        lead = self.study.incumbent
        mark = "  <- best so far" if lead is not None and lead is not before and lead.id == e.id else ""
        return (f"{e.stage}: {name} loss {e.loss:.4f} after {e.spec.steps} steps, {size(e.predicted_bytes)}, "
                f"{m.seconds:.1f} s{mark}")

    def _profile(self, e: Mapping[str, Any]) -> str:
        return f"profile of {len(e['units'])} units and {len(e['formats'])} formats in {duration(e['seconds'])}"

    def _calibration(self, e: Mapping[str, Any]) -> str:
        return f"learning rate {float(e['lr']):.3g} (rule {e['rule']})"

    def _confirmation(self, e: Mapping[str, Any]) -> str:
        return (f"confirmed on {len(e['train_seeds'])} unseen seeds: difference to the best uniform "
                f"{signed(e['mean'])}, 95 % interval {signed(e['low'])} to {signed(e['high'])}; a "
                f"{e['winner_kind']} allocation is chosen")

    def _measured(self, e: Mapping[str, Any]) -> str:
        measured = "not measured" if e["measured_bytes"] is None else f"{size(e['measured_bytes'])} measured"
        return f"memory: {size(e['predicted_bytes'])} predicted, {measured}, {'fits' if e['fits'] else 'does NOT fit'}"

    def _final(self, e: Mapping[str, Any]) -> str:
        return f"final fine-tune: loss {e['loss']:.4f} after {e['steps']} steps"

    def _warning(self, e: Mapping[str, Any]) -> str:
        return f"warning: {e['message']}"

    def _end(self, e: Mapping[str, Any]) -> str:
        return f"ended: {e['status']}"


def evaluations_after_search(config: Mapping[str, Any]) -> int:
    """High-fidelity evaluations that a run's configuration asks for beside the search: references, confirmation, at
    other learning rates too, and ranking check (in which each counts as often as it is longer)."""
    confirm, effort = config.get("confirm", {}), config.get("effort", {})
    if not isinstance(effort, Mapping) or not confirm:
        return 0
    rates = 1 + len(effort.get("rate_factors", ()))
    return 2 * int(confirm["seeds"]) * rates + int(effort["ranking_top"]) * int(confirm["ranking_factor"]) + \
        2 * bool(effort["references"])


def _name(e: Trial) -> str:
    """``4-bit r16`` for a uniform choice, else the average bits and rank."""
    bits, ranks = e.bits, e.allocation.ranks
    if len(set(bits)) == 1 and len(set(ranks)) == 1:
        return f"{bits[0]}-bit r{ranks[0]}"
    n = len(bits)
    return f"{e.allocation.fingerprint[:6]} ({sum(bits) / n:.2f} bits, rank {sum(ranks) / n:.1f})"


class LiveView:
    """Listens to a run: call it with every journal event, and ``progress`` in between.

    On a terminal it redraws a small panel; elsewhere it prints dated lines, progress at most every 20 s.
    A context manager: leaving it restores the terminal, whatever happened.

    Args:
        console: Where to print (stderr by default, so that stdout stays for results).
        clock: Monotonic seconds; tests give their own.
        born: Events from before this moment are history (now, unless tests give another).
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic,
                 born: datetime | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.state = RunState()
        self._clock = clock
        self._started = clock()
        self._born = (datetime.now().astimezone() if born is None else born) - CLOCK_GRAIN
        self._history = 0
        self._lines: deque[str] = deque(maxlen=KEPT_EVENTS)
        self._activity = ("", 0, 0)
        self._told: tuple[str, float] = ("", float("-inf"))
        self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4,
                          transient=True) if self.console.is_terminal else None

    def __enter__(self) -> "LiveView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = self.state.feed(event)
        self._activity = ("", 0, 0)
        if self._is_history(event):
            self._history += 1
            return
        self._tell_history()
        if line is None:
            return
        self._lines.append(f"{datetime.now():%H:%M:%S} {line}")
        if self._live is None:
            eta = self.state.eta_seconds()
            left = f"  [{self._share()}, about {rough(eta)} left]" if eta is not None and \
                event["event"] == "trial" else ""
            self._plain(line + left)

    def _is_history(self, event: Mapping[str, Any]) -> bool:
        """Whether an earlier session wrote it: a resumed run replays its journal, which is not told line by line."""
        return datetime.fromisoformat(event["time"]) < self._born

    def _tell_history(self) -> None:
        if self._history:
            line = f"went on from {self._history} events of earlier sessions: {self.state.title}"
            self._history = 0
            self._lines.append(line)
            if self._live is None:
                self._plain(line)

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` parts of ``what`` are done."""
        self._activity = (what, done, total)
        now = self._clock()
        if self._live is None and (what != self._told[0] or now - self._told[1] >= QUIET_SECONDS):
            self._told = (what, now)
            self._plain(f"{what}: {done} of {total}")

    def _plain(self, line: str) -> None:
        self.console.print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", markup=False, highlight=False, soft_wrap=True)

    def _share(self) -> str:
        planned = self.state.planned
        return "" if not planned else f"{min(100.0, 100 * self.state.spent / planned):.0f} % of the planned cost"

    def _render(self) -> RenderableType:
        s, (what, done, total) = self.state, self._activity
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column()
        grid.add_row("run", escape(s.title or "starting"))
        doing = f"{s.stage}  {escape(what)} {done}/{total}" if what else s.stage
        grid.add_row("stage", doing)
        if s.planned:
            eta = s.eta_seconds()
            grid.add_row("cost", ProgressBar(total=s.planned, completed=min(s.spent, s.planned), width=40,
                                              complete_style="cyan", finished_style="cyan"))
            left = "time left not known yet" if eta is None else f"about {rough(eta)} left" if eta else "finishing"
            pace = f"; an evaluation takes {s.pace()}" if s.pace() else ""
            grid.add_row("", f"{self._share()}, {left}{pace}; {duration(self._clock() - self._started)} so far")
        best, uniform = s.study.incumbent, s.study.best_uniform
        if best is not None:
            versus = "" if uniform is None else f"  {signed(loss_of(best) - loss_of(uniform))} against {_name(uniform)}"
            grid.add_row("best", f"[bold]{loss_of(best):.4f}[/bold] {escape(_name(best) + versus)}")
            used, budget = best.predicted_bytes, s.study.budget_bytes
            grid.add_row("memory", ProgressBar(total=budget, completed=used, width=40, complete_style="green",
                                                finished_style="green"))
            grid.add_row("", f"{size(used)} of {size(budget)} ({100 * used / budget:.1f} %)")
        return Group(grid, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._lines))
