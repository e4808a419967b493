"""Checkpoints of interrupted and promoted trials: adapter masters, moments, and the cost so far."""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass(slots=True)
class Checkpoint:
    """State after ``step`` optimiser steps.

    Args:
        step: Steps done.
        target: Steps of the trial that wrote it. A trial of the same target was interrupted, and its cost counts. One
            of a smaller target was finished, and is now promoted.
        first: Steps done before that trial began.
        training_tokens: Tokens that went forward and backward.
        forward_tokens: Tokens that went forward only.
        seconds: Seconds so far.
        curve: Held-out loss at the recorded steps so far.
        state: Masters and moments by name.
    """

    step: int = 0
    target: int = 0
    first: int = 0
    training_tokens: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    state: dict[str, torch.Tensor] = field(default_factory=dict)


log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of trials by name, written atomically, at most ``keep`` of them (the oldest go first).

    They save time and no result depends on them: where one can't be written (a full disk), the trial continues.

    Args:
        folder: Created on first use, inside a folder that exists: a run's folder that vanished is not made again.
        keep: How many trials may have a checkpoint.
    """

    def __init__(self, folder: Path, keep: int = 32) -> None:
        self.folder, self.keep = folder, keep

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def save(self, name: str, checkpoint: Checkpoint) -> bool:
        """Write the checkpoint of ``name``; return whether it was possible."""
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(exist_ok=True)
            self._write(name, checkpoint, temporary)
            return True
        except (OSError, SafetensorError) as error:
            log.warning("no checkpoint can be written to %s (%s); the trial continues, and after a kill it repeats its "
                        "steps since the last checkpoint", self.folder, error)
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, name: str, checkpoint: Checkpoint, temporary: Path) -> None:
        facts = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name != "state"}
        save_file({k: v.contiguous().cpu() for k, v in checkpoint.state.items()}, temporary,
                  metadata={"facts": json.dumps(facts)})
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        ages = self._ages()
        newest = max(ages.values(), default=0)
        if temporary.stat().st_mtime_ns <= newest:  # the clock was set back
            os.utime(temporary, ns=(newest + 1, newest + 1))
        temporary.replace(self._path(name))
        others = sorted((p for p in ages if p != self._path(name)), key=ages.__getitem__)
        for path in others[: max(0, len(others) + 1 - self.keep)]:
            path.unlink(missing_ok=True)

    def _ages(self) -> dict[Path, int]:
        """Return when each checkpoint was written, ns, without those that another worker removes meanwhile."""
        ages = {}
        for path in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):
                ages[path] = path.stat().st_mtime_ns
        return ages

    def load(self, name: str, at_most: int) -> Checkpoint | None:
        """Return the checkpoint of ``name`` for at most ``at_most`` steps, or ``None``; remove an unreadable one."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as handle:
                facts = json.loads(handle.metadata()["facts"])
                if facts["target"] > at_most:
                    return None
                curve = tuple((int(s), float(v)) for s, v in facts.pop("curve"))
                state = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
                return Checkpoint(**facts, curve=curve, state=state)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
            path.unlink(missing_ok=True)  # written by a machine that died, or foreign
            return None
