"""One training while it runs, a trial's or the final one: steps and cost so far, and its checkpoints."""

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean

from torch import Tensor

from qra_bo.finetune.checked_tensors import load_checked, save_checked
from qra_bo.finetune.training.final import FinalConfig
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.finetune.training.processes import ALONE, Processes
from qra_bo.oracle.protocol import TRAINING
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import TrainingError
from qra_bo.utils.files import replacing

log = logging.getLogger(__name__)
LATEST = 10
"""Steps over which the training loss that is shown is averaged."""
_BEST = "best|"
"""Prefix of the names that the tensors of ``Checkpoint.best`` have in a file."""


@dataclass(slots=True)
class Checkpoint:
    """State after ``step`` optimiser steps.

    Args:
        step: Steps done.
        target: Steps of the trial that wrote it. A trial of the same target was interrupted, and its cost counts; one
            of a smaller target is promoted.
        first: Steps done before that trial began.
        forward_tokens: Tokens that went forward only.
        curve: Validation loss of a final fine-tune so far; empty in trials.
        state: Masters and moments by name.
        best: Masters at the least validation loss of a final fine-tune, by name; empty in trials.
        losses: Training loss of every step.
    """

    step: int = 0
    target: int = 0
    first: int = 0
    training_tokens: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    state: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


class CheckpointStore:
    """Checkpoints of trials by name, written atomically, at most ``keep`` of them (the oldest go first).

    No result depends on them: where one can't be written, the trial continues. ``folder`` is created at the first use,
    inside a folder that exists: a run's folder that vanished is not made again.
    """

    def __init__(self, folder: Path, keep: int = 32) -> None:
        self.folder, self.keep = folder, keep

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of ``name``, or log a warning."""
        try:
            self.folder.mkdir(exist_ok=True)
            self._clear(name)
            with replacing(self._path(name)) as temporary:
                self._write(name, checkpoint, temporary)
        except OSError as error:
            log.warning("no checkpoint can be written to %s (%s); the trial continues, and after a kill it repeats its "
                        "steps since the last checkpoint", self.folder, error)

    def _write(self, name: str, checkpoint: Checkpoint, temporary: Path) -> None:
        facts = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name not in ("state", "best")}
        facts["name"] = name  # a file under another one's name is refused
        tensors = {**checkpoint.state, **{_BEST + k: v for k, v in checkpoint.best.items()}}
        save_checked(temporary, {k: v.contiguous() for k, v in tensors.items()}, facts)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        ages = {}
        for path in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another worker removed it meanwhile
                ages[path] = path.stat().st_mtime_ns
        others = sorted((p for p in ages if p != self._path(name)), key=ages.__getitem__)
        for path in others[: max(0, len(others) + 1 - self.keep)]:
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove the checkpoint of ``name``, if there is one."""
        with suppress(OSError):  # it costs space alone
            self._clear(name)
            self._path(name).unlink()

    def _clear(self, name: str) -> None:
        """Remove halves of ``name`` that processes left which were killed while they wrote: each may have a GB."""
        for path in self.folder.glob(f".{name}.safetensors.*"):
            path.unlink(missing_ok=True)

    def load(self, name: str, at_most: int) -> Checkpoint | None:
        """Return the checkpoint of ``name`` for at most ``at_most`` steps, or ``None``; remove an unreadable one."""
        path = self._path(name)
        try:
            tensors, facts = load_checked(path)
            if facts.pop("name") != name:
                raise ValueError("it is the checkpoint of another trial")
            curve = tuple((int(s), float(v)) for s, v in facts.pop("curve"))
            best = {k.removeprefix(_BEST): tensors.pop(k) for k in list(tensors) if k.startswith(_BEST)}
            found = Checkpoint(**facts, curve=curve, state=tensors, best=best)
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            log.warning("the checkpoint %s can't be used, and the training begins anew: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        return found if found.target <= at_most else None


@dataclass(slots=True)
class TrialRun:
    """Steps and cost so far of a training, whether or not it ends well: a trial's, or the final one, which follows the
    validation loss and keeps the masters of the least.

    Args:
        request: The trial.
        store: Store of checkpoints, or ``None`` to keep none.
        final: Rules of the final fine-tune; ``None`` in trials.
        most_blocks: Most held-out sequences of a look; ``None``: as the oracle is set.
        purpose: Name of its steps in reports of progress.
        processes: Those that share it.
        at: Steps, tokens and curve so far, and the seconds of earlier processes that were interrupted.
        start: Time at which this process began with it.
        saved: Time of the last checkpoint.
    """

    request: TrialSpec
    store: CheckpointStore | None
    final: FinalConfig | None = None
    most_blocks: int | None = None
    purpose: str = TRAINING
    processes: Processes = ALONE
    at: Checkpoint = field(init=False)
    start: float = field(init=False, default_factory=time.monotonic)
    saved: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.at = Checkpoint(target=self.request.steps)

    @property
    def name(self) -> str:
        """Name of its checkpoint."""
        return self.request.training if self.final is None else f"final-{self.request.training}"

    @property
    def activity(self) -> str:
        """What progress is reported of, with the mean loss of the latest steps and the latest validation loss."""
        latest = self.at.losses[-LATEST:]
        last = f", {self.validated}" if self.at.curve else ""
        return f"{self.purpose} (mean loss of {len(latest)} steps {fmean(latest):.4f}{last})"

    @property
    def validated(self) -> str:
        """The latest validation loss of a final fine-tune, in words."""
        return "validation loss {1:.4f} after {0} steps".format(*self.at.curve[-1])

    @property
    def ended(self) -> bool:
        """Whether training ends before the last of its steps."""
        return self.final is not None and self.final.ended(self.at.curve)

    def record(self, loss: float, optimizer: UnitwiseAdamW) -> None:
        """Add the validation loss (nats) after the steps done to the curve of a final fine-tune."""
        self.at.curve = (*self.at.curve, (self.at.step, loss))
        if self.final is not None and self.final.keep == "best" and self.final.kept(self.at.curve) == self.at.step:
            self.at.best = optimizer.masters()

    def choose(self, optimizer: UnitwiseAdamW) -> None:
        """Give the model the adapters that a final fine-tune delivers."""
        if self.final is not None and self.final.kept(self.at.curve) != self.at.step:
            optimizer.load_masters(self.at.best)

    @property
    def seconds(self) -> float:
        """Seconds in this process and in earlier ones that were interrupted."""
        return self.at.seconds + time.monotonic() - self.start

    def failed(self, state: TrialState, message: str) -> TrialResult:
        """Return a result without a loss."""
        return TrialResult(state, None, None, (), self.at.step - self.at.first, self.at.training_tokens,
                           self.at.forward_tokens, None, self.seconds, 0.0, message)

    def checked(self, found: TrialResult) -> TrialResult:
        """Return the result of a final fine-tune; raise ``TrainingError`` if it did not end well."""
        if found.state is TrialState.OK:
            return found
        raise TrainingError(
            f"the final fine-tune of {self.request.steps} steps did not end well ({found.state.value}): "
            f"{found.message}. The results of the search are in the run's trials.jsonl; " + {
                TrialState.DIVERGED: "start a run with a lower adapter.lr or fewer final.steps",
                TrialState.OOM: "start a run with a smaller budget or train.batch",
            }.get(found.state, "run the same command again"))

    def save(self, optimizer: UnitwiseAdamW) -> None:
        """Write a checkpoint with the state of the optimiser."""
        if self.store and not self.processes.number:
            self.store.save(self.name, replace(self.at, seconds=self.seconds, state=optimizer.state()))
        self.saved = time.monotonic()

    def restore(self, optimizer: UnitwiseAdamW) -> None:
        """Continue from the checkpoint, if there is one. A final fine-tune also goes on from that of a trial of its own
        schedule, up to the first validation."""
        steps = self.request.steps
        most = {self.name: steps} if self.final is None else \
            {self.name: steps, self.request.training: self.final.validations(steps)[0]}
        saved = self.processes.of_first(lambda: next(filter(None, (
            self.store.load(name, at_most) for name, at_most in most.items())), None) if self.store else None)
        if saved is None:
            return
        optimizer.load_state(saved.state)
        self.at = replace(saved, state={})
        if saved.target != self.request.steps:  # a finished trial of lower fidelity: its cost does not count
            self.at = Checkpoint(saved.step, self.request.steps, saved.step, losses=saved.losses)

    def stops(self) -> list[int]:
        """Return the steps at which training pauses: a trial's last, and those of a final fine-tune after which its
        validation loss is due: that after the last step taken may not have been recorded."""
        if self.final is None:
            return [self.request.steps]
        recorded = {step for step, _ in self.at.curve}
        return [s for s in self.final.validations(self.request.steps) if s >= self.at.step and s not in recorded]
