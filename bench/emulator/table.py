"""A table of real trials: a folder with the facts of a task, its memory, its sensitivities and its rows.

    task.json          shared by all rows: model, data, units, ladders, trainer, budgets
    memory.json        predicted bytes of any allocation on the ladders, by scope
    profile.json       sensitivities, measured on text that no row was trained or evaluated on
    evaluations.csv    one trial a line
    provenance.jsonl   origin of each batch of rows

Rows and batches are only ever appended, so that several machines can each add to a copy and the copies be joined.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.store import read_lines
from qra_bo.sensitivity.profile import SensitivityProfile, profile_from_json
from qra_bo.space import Allocation, CostTable, PhaseCost
from qra_bo.trials import TrialState
from qra_bo.utils.errors import DataError, SpaceError

SCHEMA_VERSION = 1
TASK, MEMORY, PROFILE, ROWS, PROVENANCE = ("task.json", "memory.json", "profile.json", "evaluations.csv",
                                           "provenance.jsonl")
PROFILE_BATCH = "profile"
"""Name of the line of ``provenance.jsonl`` with the cost of the profile."""
LR_TOLERANCE = 0.1
"""Relative difference up to which two factors on the learning rate count as one: the loss is flat at its optimum."""
LR_RANGE = 0.5
"""Relative difference up to which rows may be of one table: runs calibrate the factor anew, and a level of its own for
every factor removes most of its effect on a comparison."""


@dataclass(frozen=True, slots=True)
class ReferenceBudget:
    """A budget of the task: ``text`` is what a user writes, e.g. ``"uniform:4,4"``; ``scope`` is peak or stored."""

    text: str
    scope: str
    bytes: int


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Facts that all rows of a table share.

    Args:
        task: Name of the table.
        model_sha256: Fingerprint of the model's weights.
        data_sha256: Hash of the texts of all splits.
        train_blocks: Sequences of the training split.
        calibration_blocks: Number of the first sequences, which no training uses: sensitivities are measured on them.
        units: Names of the ``L`` units.
        formats: Names of the ladder's ``F`` formats.
        ranks: The rank ladder, ``R``.
        dtype: Compute type.
        trainer: Batch, schedule, optimiser and learning rate, as the oracle describes them.
        length: Tokens of a sequence.
        eval_tokens: Held-out tokens of an evaluation.
        steps: Optimiser steps of every row.
        record_at: Earlier steps whose loss is recorded.
        train_seeds: Training seeds; all rows but repeats have the first.
        lr_scales: Factors on the learning rate that were tried.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    task: str
    model: str
    model_sha256: str
    data_sha256: str
    train_blocks: int
    calibration_blocks: int
    granularity: str
    units: tuple[str, ...]
    formats: tuple[str, ...]
    ranks: tuple[int, ...]
    dtype: str
    trainer: Mapping[str, Any]
    adapter: Mapping[str, Any]
    length: int
    eval_tokens: int
    steps: int
    record_at: tuple[int, ...]
    train_seeds: tuple[int, ...]
    lr_scales: tuple[float, ...]
    budgets: tuple[ReferenceBudget, ...]

    @property
    def learning_rate(self) -> float:
        """The rate that the rows' factors (``lr_scale``) refer to."""
        return float(self.trainer["lr"])

    @property
    def step_sequences(self) -> int:
        """Sequences of an optimiser step; trainers that don't say otherwise accumulate no batches."""
        return int(self.trainer["batch"]) * int(self.trainer.get("accumulate", 1))

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimiser step."""
        return self.step_sequences * self.length


@dataclass(frozen=True, slots=True)
class TableRow:
    """One real trial.

    Args:
        origin: Reason why it is in the table, e.g. ``"near uniform:4,4"``.
        lr_scale: Factor on the learning rate.
        loss: Held-out loss (nats per token) after all steps, ``None`` unless ``state`` is ``ok``.
        loss_se: Standard error of ``loss`` over held-out sequences.
        early: Loss at each of ``record_at``; ``None`` where it was not recorded.
        bytes: Predicted bytes by scope.
        seconds: Wall time.
        batch: Name of the line of ``provenance.jsonl``.
    """

    allocation: Allocation
    origin: str
    train_seed: int
    lr_scale: float
    state: TrialState
    loss: float | None
    loss_se: float | None
    early: tuple[float | None, ...]
    bytes: Mapping[str, int]
    seconds: float
    batch: str


@dataclass(frozen=True)
class Table:
    """All of a table's folder."""

    facts: TaskFacts
    costs: Mapping[str, CostTable]
    profile: SensitivityProfile
    rows: tuple[TableRow, ...]
    provenance: Mapping[str, Mapping[str, Any]]


def same_rate(a: float, b: float) -> bool:
    """Whether two factors on the learning rate count as one."""
    return abs(math.log(a / b)) <= math.log1p(LR_TOLERANCE)


def comparable_rate(a: float, b: float) -> bool:
    """Whether rows at two factors on the learning rate may be of one table."""
    return abs(math.log(a / b)) <= math.log1p(LR_RANGE)


def pooled(rows: Iterable[TableRow]) -> list[TableRow]:
    """Return rows that ended with a loss."""
    return [row for row in rows if row.state is TrialState.OK and row.loss is not None]


def load_table(path: Path) -> Table:
    """Read the folder of a table, named by itself or by its ``evaluations.csv``.

    Raises:
        DataError, ProfileError: If a file is missing or malformed.
    """
    folder = folder_of(path)
    facts = load_facts(folder)
    profile = profile_from_json(_object(folder / PROFILE), str(folder / PROFILE))
    return Table(facts, load_costs(folder), profile, load_rows(folder / ROWS, facts),
                 load_provenance(folder / PROVENANCE))


def folder_of(path: Path) -> Path:
    """Return the folder of a table that is named by itself or by its ``evaluations.csv``."""
    return path.parent if path.name == ROWS else path


def load_facts(folder: Path) -> TaskFacts:
    """Read ``task.json`` of a folder, or raise ``DataError``."""
    path = folder / TASK
    data = _object(path)
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has schema_version {version!r}; this release reads {SCHEMA_VERSION}")
    try:
        return TypeAdapter(TaskFacts).validate_python(data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path} does not hold the facts of a table of trials: {wrong}") from error


def load_costs(folder: Path) -> dict[str, CostTable]:
    """Read ``memory.json`` of a folder, memory by scope; units share tables."""
    def array(shared: Mapping[str, Any]) -> Any:
        return np.array(shared["tables"], dtype=np.int64)[np.array(shared["of_unit"], dtype=np.int64)]

    return {scope: CostTable(tuple(PhaseCost(p["name"], int(p["fixed"]), array(p["unit"]), array(p["spike"]))
                                   for p in phases)) for scope, phases in _object(folder / MEMORY).items()}


def columns(facts: TaskFacts) -> list[str]:
    """Return the names of the columns of ``evaluations.csv``."""
    scopes = sorted({b.scope for b in facts.budgets})
    return ["fingerprint", "origin", "formats", "ranks", "train_seed", "lr_scale", "state", "loss", "loss_se",
            *(f"loss_{step}" for step in facts.record_at), *(f"{scope}_bytes" for scope in scopes), "seconds", "batch"]


def load_rows(path: Path, facts: TaskFacts) -> tuple[TableRow, ...]:
    """Read the rows of ``evaluations.csv``; none where there is no such file yet. A cut-off last line is left out.

    Raises:
        DataError: If a line is malformed, or is not of this task.
    """
    reader = csv.DictReader(read_lines(path), restval="")
    if reader.fieldnames is not None and list(reader.fieldnames) != columns(facts):
        raise DataError(f"{path} must have the columns {columns(facts)}; got {reader.fieldnames}")
    return tuple(_row(cells, facts, f"{path}, line {number}") for number, cells in enumerate(reader, start=2))


def _row(cells: Mapping[str, str], facts: TaskFacts, where: str) -> TableRow:
    def number(key: str) -> float | None:
        return float(cells[key]) if cells[key] else None

    try:
        allocation = Allocation(tuple(cells["formats"].split()), tuple(map(int, cells["ranks"].split())))
        if allocation.fingerprint != cells["fingerprint"] or len(allocation) != len(facts.units):
            raise ValueError("the fingerprint is of another allocation, or the units are another number")
        return TableRow(allocation, cells["origin"], int(cells["train_seed"]), float(cells["lr_scale"]),
                        TrialState(cells["state"]), number("loss"), number("loss_se"),
                        tuple(number(f"loss_{step}") for step in facts.record_at),
                        {b.scope: int(cells[f"{b.scope}_bytes"]) for b in facts.budgets}, float(cells["seconds"]),
                        cells["batch"])
    except (KeyError, TypeError, ValueError, SpaceError) as error:
        raise DataError(f"{where} is no row of this table: {error}") from error


def load_provenance(path: Path) -> dict[str, dict[str, Any]]:
    """Read the origin of every batch, by its name; empty where there is no such file yet."""
    return {str(data.pop("batch")): data for data in map(json.loads, read_lines(path))}


def _object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"a table of trials is a folder with {', '.join((TASK, MEMORY, PROFILE, ROWS))}; "
                        f"{path} can't be read ({error})") from error
