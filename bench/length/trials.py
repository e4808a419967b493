"""Finished trials of the length study: one JSON line each, appended and synced at once."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_bo.space import Allocation
from qra_bo.trials import TrialState

NAME = "trials.jsonl"
Key = tuple[str, str, int, int, str, float, str | None]
Found = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One fine-tune and its evaluation.

    Args:
        task: Name of the text, ``"plays"`` or ``"gsm8k"``.
        allocation: Formats and ranks of all layers.
        steps: Optimiser steps, and length of the learning-rate schedule.
        train_seed: Seed of data order and adapter initialisation.
        split: ``"validation"`` or ``"test"``.
        lr_scale: Factor on the learning rate of the configuration.
        codes: ``"rtn"`` for round-to-nearest codes, ``None`` for GPTQ's.
    """

    task: str
    allocation: Allocation
    steps: int
    train_seed: int
    split: str
    lr_scale: float
    codes: str | None = None

    @property
    def key(self) -> Key:
        """Identity: trials of one key have one result, whichever row of the plan asks for it."""
        return (self.task, self.allocation.fingerprint, self.steps, self.train_seed, self.split, self.lr_scale,
                self.codes)


def to_event(trial: PlannedTrial, name: str, result: Mapping[str, Any], session: str) -> dict[str, Any]:
    """A finished trial as its line holds it; ``result`` adds state, loss, curve and cost."""
    return {"event": "trial", "time": None, "task": trial.task, "name": name, "steps": trial.steps,
            "train_seed": trial.train_seed, "split": trial.split, "lr_scale": trial.lr_scale, "codes": trial.codes,
            **trial.allocation.to_json(), **result, "session": session}


def append(path: Path, event: Mapping[str, Any]) -> None:
    """Append one line and sync it; what a killed writer left of its last line is cut off first."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(event).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> dict[Key, dict[str, Any]]:
    """Finished trials by key. An incomplete last line and trials that were lost with their worker are left out."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    events = [json.loads(line) for line in content[:content.rfind(b"\n") + 1].splitlines()]
    return {trial_of(e).key: e for e in events if e["event"] == "trial" and e["state"] != TrialState.FAILED}


def trial_of(event: Mapping[str, Any]) -> PlannedTrial:
    """The trial of a line."""
    return PlannedTrial(event["task"], Allocation.from_json(event), event["steps"], event["train_seed"],
                        event["split"], event["lr_scale"], event["codes"])
