"""The options of a data set: one node of ``conf/data``."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the text comes from and how much of it is used.

    Args:
        name: Name of the group's option, e.g. ``"plays"``.
        kind: Which loader reads it.
        path: A JSON or JSONL file (``jsonl``), or an id on the hub (``hub``).
        subset: Named configuration or file of a hub data set.
        revision: Git revision of a hub data set.
        held_out: Share of the records in validation, and again in test (plays are split by name instead).
        max_records: Largest number of records read, or ``None`` for all.
        calibration: Sequences of the training split that sensitivities are measured on.
    """

    name: str
    kind: Literal["plays", "jsonl", "hub", "tiny"]
    path: str | None
    subset: str | None
    revision: str | None
    held_out: float
    max_records: int | None
    calibration: int
