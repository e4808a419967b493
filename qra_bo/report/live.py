"""What a person sees while a run goes on: a live view on a terminal, dated lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qra_bo.report.data import FORWARD_SHARE, SIDE_STAGES
from qra_bo.report.text import duration, signed, size

KEPT_EVENTS = 6
QUIET_SECONDS = 20.0
"""Least time between two plain progress lines of one activity."""


class RunState:
    """What can be said of a run from the events seen so far; fed one at a time, no clock of its own.

    Attributes:
        stage: The stage that runs.
        spent: Cost so far, training tokens; a forward-only token counts 1/3.
        planned: What the effort allows, training tokens, or ``None`` before the header.
        best: (loss, name) of the incumbent; ``best_uniform`` likewise.
    """

    def __init__(self) -> None:
        self.stage = "start"
        self.spent = 0.0
        self.planned: float | None = None
        self.budget: int | None = None
        self.title = ""
        self.best: tuple[float, str, int] | None = None
        self.best_uniform: tuple[float, str, int] | None = None
        self.counts: dict[str, int] = {}
        self._seconds: dict[str, deque[float]] = {"low": deque(maxlen=25), "high": deque(maxlen=25)}
        self._paced = (0.0, 0.0)

    def feed(self, event: Mapping[str, Any]) -> str | None:
        """Take one journal event; returns the line that tells of it, or ``None`` if there is nothing to tell."""
        kind = event["event"]
        handler = {"header": self._header, "stage": self._stage, "evaluation": self._evaluation,
                   "profile": self._profile, "calibration": self._calibration, "confirmation": self._confirmation,
                   "measured": self._measured, "final": self._final, "warning": self._warning,
                   "end": self._end}.get(kind)
        return None if handler is None else handler(event)

    def eta_seconds(self) -> float | None:
        """Time that the rest of the planned cost takes at the measured seconds a training token, or ``None``."""
        seconds, tokens = self._paced
        if self.planned is None or tokens == 0:
            return None
        return max(0.0, self.planned - self.spent) * seconds / tokens

    def pace(self) -> str:
        """Median seconds of an evaluation by fidelity, e.g. ``high 20.3 s, low 5.1 s``."""
        parts = []
        for fidelity in ("high", "low"):
            seen = sorted(self._seconds[fidelity])
            if seen:
                parts.append(f"{fidelity} {seen[len(seen) // 2]:.1f} s")
        return ", ".join(parts)

    def _header(self, e: Mapping[str, Any]) -> str:
        self.planned = None if e["planned_cost"] is None else float(e["planned_cost"])
        self.budget = int(e["budget_bytes"])
        real = "" if e["oracle"] == "finetune" else f" [{e['oracle']} results: no model is trained]"
        self.title = (f"{e['model']} within {size(self.budget)} ({e['scope']}), effort {e['effort']}, "
                      f"{e['method']}{real}")
        return self.title

    def _stage(self, e: Mapping[str, Any]) -> str | None:
        if e["state"] == "end":
            return None
        self.stage = str(e["stage"])
        return f"stage {self.stage}"

    def _charge(self, e: Mapping[str, Any]) -> None:
        tokens = float(e["training_tokens"]) + FORWARD_SHARE * float(e["forward_tokens"])
        self.spent += tokens
        self._paced = (self._paced[0] + float(e["seconds"]), self._paced[1] + tokens)

    def _profile(self, e: Mapping[str, Any]) -> str:
        self._charge(e)
        return f"profile of {len(e['units'])} units and {len(e['formats'])} formats in {duration(e['seconds'])}"

    def _evaluation(self, e: Mapping[str, Any]) -> str:
        self._charge(e)
        self.counts[e["state"]] = self.counts.get(e["state"], 0) + 1
        name = _name(e)
        if e["state"] != "ok" or e["loss"] is None:
            return f"{e['stage']}: {name} {e['state']} ({e['message'] or 'no loss'})"
        self._seconds[e["fidelity"]].append(float(e["seconds"]))
        mark = ""
        if self._may_lead(e):
            entry = (float(e["loss"]), name, int(e["predicted_bytes"]))
            if self.best is None or entry[0] < self.best[0]:
                self.best, mark = entry, "  <- best so far"
            if e["stage"] == "baseline" and (self.best_uniform is None or entry[0] < self.best_uniform[0]):
                self.best_uniform = entry
        return (f"{e['stage']}: {name} loss {e['loss']:.4f} after {e['steps']} steps, "
                f"{size(e['predicted_bytes'])}, {e['seconds']:.1f} s{mark}")

    def _may_lead(self, e: Mapping[str, Any]) -> bool:
        return (e["fidelity"] == "high" and e["split"] == "validation" and e["lr_scale"] == 1
                and e["stage"] not in SIDE_STAGES and e["stage"] != "reference"
                and self.budget is not None and e["predicted_bytes"] <= self.budget)

    def _calibration(self, e: Mapping[str, Any]) -> str:
        return f"learning rate {float(e['lr']):.3g} (rule {e['rule']})"

    def _confirmation(self, e: Mapping[str, Any]) -> str:
        return (f"confirmed on {len(e['train_seeds'])} unseen seeds: difference to the best uniform "
                f"{signed(e['mean'])}, 95 % interval {signed(e['low'])} to {signed(e['high'])}; a "
                f"{e['winner_kind']} allocation wins")

    def _measured(self, e: Mapping[str, Any]) -> str:
        measured = "not measured" if e["measured_bytes"] is None else f"{size(e['measured_bytes'])} measured"
        return f"memory: {size(e['predicted_bytes'])} predicted, {measured}, {'fits' if e['fits'] else 'does NOT fit'}"

    def _final(self, e: Mapping[str, Any]) -> str:
        return f"final fine-tune: loss {e['loss']:.4f} after {e['steps']} steps"

    def _warning(self, e: Mapping[str, Any]) -> str:
        return f"warning: {e['message']}"

    def _end(self, e: Mapping[str, Any]) -> str:
        return f"ended: {e['status']}"


def _name(e: Mapping[str, Any]) -> str:
    """``4-bit r16`` for a uniform choice, else the average bits and rank."""
    bits, ranks = e["bits"], e["ranks"]
    if len(set(bits)) == 1 and len(set(ranks)) == 1:
        return f"{bits[0]}-bit r{ranks[0]}"
    return f"{e['fingerprint'][:6]} ({sum(bits) / len(bits):.2f} bits, rank {sum(ranks) / len(ranks):.1f})"


class LiveView:
    """Listens to a run: call it with every journal event, and ``progress`` in between.

    On a terminal it redraws a small panel; elsewhere it prints dated lines, progress at most every 20 s.
    A context manager: leaving it restores the terminal, whatever happened.

    Args:
        console: Where to print (stderr by default, so that stdout stays for results).
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.state = RunState()
        self._clock = clock
        self._started = clock()
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
        if line is None:
            return
        self._lines.append(f"{datetime.now():%H:%M:%S} {line}")
        if self._live is None:
            eta = self.state.eta_seconds()
            left = f"  [{self._share()}, about {duration(eta)} left]" if eta is not None and \
                event["event"] == "evaluation" else ""
            self._plain(line + left)

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
            grid.add_row("cost", ProgressBar(total=s.planned, completed=min(s.spent, s.planned), width=40))
            left = "time left not known yet" if eta is None else f"about {duration(eta)} left" if eta else "finishing"
            pace = f"; an evaluation takes {s.pace()}" if s.pace() else ""
            grid.add_row("", f"{self._share()}, {left}{pace}; {duration(self._clock() - self._started)} so far")
        if s.best is not None and s.budget is not None:
            loss, name, used = s.best
            versus = f"  {signed(loss - s.best_uniform[0])} against {s.best_uniform[1]}" if s.best_uniform else ""
            grid.add_row("best", f"[bold]{loss:.4f}[/bold] {escape(name)}{escape(versus)}")
            grid.add_row("memory", ProgressBar(total=s.budget, completed=used, width=40))
            grid.add_row("", f"{size(used)} of {size(s.budget)} ({100 * used / s.budget:.1f} %)")
        return Group(grid, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._lines))
