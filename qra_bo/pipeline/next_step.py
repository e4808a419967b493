"""What to run after a plan: the commands that train the uniform choice or search, and what they take."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from qra_bo.memory import Plan
from qra_bo.memory.verdict import MIXING_PAYS, NOTHING_BINDS, NOTHING_FITS
from qra_bo.pipeline.forecast import Forecast
from qra_bo.report.text import rough
from qra_bo.utils.redact import redact

OF_A_PLAN = ("task", "gpu", "memory.format", "memory.verify")
"""Overrides that a run after the plan does without."""
_UNIFORM = re.compile(r"'(uniform:\d+,\d+)'")


@dataclass(frozen=True, slots=True)
class NextStep:
    """A command for a shell, what it does, and its rough time in words where that is known."""

    what: str
    command: str
    time: str | None


def next_steps(plan: Plan, overrides: Sequence[str], forecast: Forecast | None = None) -> list[NextStep]:
    """Return what to run after a plan of one budget: train the uniform choice, or search, the better advice first.
    Nothing after one of several budgets, and where no uniform choice fits.

    Args:
        plan: The plan.
        overrides: Of the command that made it.
        forecast: Times.
    """
    answer = plan.budgets[0]
    if len(plan.budgets) > 1 or answer.best is None or answer.verdict.region == NOTHING_FITS:
        return []
    given = {re.split("[=@]", text.lstrip("+~"))[0]: _UNIFORM.sub(r"\1", text.lstrip("+")) for text in overrides}
    kept = {key: f"+{text}" if key == "model" else text for key, text in given.items() if key not in OF_A_PLAN}
    if plan.card is not None:
        kept = {"budget": "budget=auto", "device": "device=cuda"} | kept
    final = None if forecast is None else forecast.final_seconds
    trained = [text for key, text in kept.items() if key not in ("budget", "effort")]
    train = NextStep("train that uniform choice", _command(
        *trained, "task=finetune", f"allocation=uniform:{answer.best.bits},{answer.best.rank}"), _time(final))
    if answer.verdict.region == NOTHING_BINDS:
        return [train]
    efforts = {} if forecast is None else {effort.effort: effort.seconds for effort in forecast.efforts}
    searches = [NextStep(what, _command(*(kept | {"effort": f"effort={effort}"}).values()),
                         _time(efforts.get(effort), final))
                for effort, what in (("quick", "search, confirm and train the winner"),
                                     ("instant", "predict an allocation without a trial, and train it"))
                if kept.get("effort", f"effort={effort}") == f"effort={effort}"]
    searches = searches or [NextStep("search, confirm and train the winner", _command(*kept.values()), None)]
    return searches if answer.verdict.region == MIXING_PAYS else [train, searches[0]]


def _command(*overrides: str) -> str:
    first = sorted(overrides, key=lambda text: not text.startswith("+model"))
    return redact(shlex.join(["python", "-m", "qra_bo", *first]))


def _time(*seconds: float | None) -> str | None:
    known = [s for s in seconds if s is not None]
    return f"about {rough(sum(known))}" if len(known) == len(seconds) else None
