"""What to run after a plan: the commands that train a uniform choice or search, and what they take."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qra_bo.memory import MemoryModel, Plan
from qra_bo.memory.advice import (
    FOUR_BITS,
    LENGTH_STEP,
    MIXING_PAYS,
    NOTHING_BINDS,
    NOTHING_FITS,
    largest_rank,
    within_average,
)
from qra_bo.pipeline.data import WHOLE
from qra_bo.pipeline.forecast import Forecast
from qra_bo.report.text import rough
from qra_bo.space import SearchSpace
from qra_bo.utils.redact import redact

OF_A_PLAN = ("task", "gpu", "memory.format", "memory.verify", "out", "resume")
"""Overrides that a run after the plan does without; two of the commands can't have one folder."""
OF_A_SEARCH = ("budget", "effort", "oracle")
"""Values and groups that task=finetune does without, or refuses."""
LEAST_RANK = 4
"""Rank from which uniform 4 bits are worth a change of the trainer before a search."""
_UNIFORM = re.compile(r"'(uniform:\d+,\d+)'")


@dataclass(frozen=True, slots=True)
class NextStep:
    """A command for a shell, what it does, and its rough time in words where that is known."""

    what: str
    command: str
    time: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """Overrides with which a uniform choice of at least 4 bits fits after all, its bits and largest rank, and what
    speaks for them."""

    overrides: tuple[str, ...]
    bits: int
    rank: int
    why: str


def after_all(memory: MemoryModel, space: SearchSpace, size: int, whole_length: int | None = None,
              most_bits: float | None = None) -> Change | None:
    """Return the first change of the trainer with which 4 bits fit ``size`` bytes at ``LEAST_RANK``; ``None`` without,
    and where ``most_bits``, the limit on average code bits, is below 4.

    Tried are a ``train.length`` that still holds the records whole (``whole_length`` tokens, where that is known), an
    embedding of 8 bits, and both.
    """
    four = next((fmt for fmt in within_average(space, most_bits) if fmt.bits >= FOUR_BITS), None)
    if memory.scope != "peak" or four is None:
        return None
    shape = memory.shape
    length = None if whole_length is None else LENGTH_STEP * -(-whole_length // LENGTH_STEP)
    changes: list[tuple[dict[str, Any], str]] = []
    if length is not None and length < shape.length:
        changes.append(({"length": length}, f"{WHOLE:.0%} of the records stay whole"))
    if shape.embeddings == 16:
        changes.append(({"embeddings": 8}, "embedding and head in 8 bits"))
    if len(changes) == 2:
        changes.append((changes[0][0] | changes[1][0], " and ".join(why for _, why in changes)))
    for fields, why in changes:
        rank = largest_rank(replace(memory, shape=replace(shape, **fields)), space, four, size)
        if rank >= LEAST_RANK:
            return Change(tuple(f"{'train.' * (key == 'length')}{key}={value}" for key, value in fields.items()),
                          four.bits, rank, why)
    return None


def next_steps(plan: Plan, space: SearchSpace, overrides: Sequence[str],
               forecast: Forecast | None = None, most_bits: float | None = None,
               config_dir: str | None = None) -> list[NextStep]:
    """Return what to run after a plan of one budget: train a uniform choice, or search, the better advice first.
    Nothing after one of several budgets, and where no uniform choice fits.

    Args:
        plan: The plan.
        space: Its units and ladders.
        overrides: Of the command that made it.
        forecast: Times.
        most_bits: Limit on average code bits; ``None``: none.
        config_dir: Of the command that made it: the user's own folder of groups.
    """
    answer = plan.budgets[0]
    if len(plan.budgets) > 1 or answer.best is None or answer.advice.region == NOTHING_FITS:
        return []
    given = {re.split("[=@]", text.lstrip("+~"))[0]: _UNIFORM.sub(r"\1", text.lstrip("+")) for text in overrides}
    kept = {key: f"+{text}" if key == "model" else text for key, text in given.items() if key not in OF_A_PLAN}
    if plan.card is not None:
        kept = {"budget": "budget=auto", "device": "device=cuda"} | kept
    final = None if forecast is None else forecast.final_seconds
    trained = {key: text for key, text in kept.items() if key.partition(".")[0] not in OF_A_SEARCH}
    command = partial(_command, [] if config_dir is None else [f"--config-dir={config_dir}"])
    train = NextStep("train that uniform choice", command(
        *trained.values(), "task=finetune", f"allocation=uniform:{answer.best.bits},{answer.best.rank}"), _time(final))
    text = None if forecast is None else forecast.text
    if answer.advice.region == NOTHING_BINDS:
        return [train]
    efforts = {} if forecast is None else {effort.effort: effort.seconds for effort in forecast.efforts}
    searches = [NextStep(what, command(*(kept | {"effort": f"effort={effort}"}).values()),
                         _time(efforts.get(effort), final))
                for effort, what in (("quick", "search, confirm and train the winner"),
                                     ("instant", "predict an allocation without a trial, and train it"))
                if kept.get("effort", f"effort={effort}") == f"effort={effort}"]
    searches = searches or [NextStep("search, confirm and train the winner", command(*kept.values()), None)]
    if answer.advice.region != MIXING_PAYS:
        return [train, searches[0]]
    change = after_all(plan.memory, space, answer.size, None if text is None else text.whole_length,
                       most_bits)
    if change is None:
        return searches
    keys = {text.partition("=")[0] for text in change.overrides}
    return [NextStep(f"before a search, train uniform {change.bits} bits, which fit so ({change.why})", command(
        *(text for key, text in trained.items() if key not in keys), *change.overrides,
        "task=finetune", f"allocation=uniform:{change.bits},{change.rank}"), _time(final)), *searches]


def _command(flags: Sequence[str], *overrides: str) -> str:
    first = sorted(overrides, key=lambda text: not text.startswith("+model"))
    return redact(shlex.join(["python", "-m", "qra_bo", *flags, *first]))


def _time(*seconds: float | None) -> str | None:
    known = [s for s in seconds if s is not None]
    return f"about {rough(sum(known))}" if len(known) == len(seconds) else None
