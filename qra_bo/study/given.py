"""Allocations that a run trains without a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_bo.space import Allocation
from qra_bo.utils.errors import JournalError

CALIBRATED = "calibrated in the search that found the allocation"
BY_RULE = "adapter.lr by its rule, not calibrated"
"""Sources of a given allocation's learning rate. A file may state another (``learning_rate_source``)."""


@dataclass(frozen=True)
class Given:
    """Allocations to train without a search, in the order of preference: the first that measures within the budget.

    Args:
        allocations: At least one.
        reason: Why nothing is searched, as the end of a sentence.
        learning_rate: As in ``TrialSpec``; ``rate_source`` says where it comes from.
        notes: Sentences that the run keeps as warnings.
    """

    allocations: tuple[Allocation, ...]
    reason: str
    learning_rate: float
    rate_source: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the header's field ``given``."""
        return {"allocations": [a.to_json() for a in self.allocations], "reason": self.reason,
                "learning_rate": self.learning_rate}


def given_allocations(header: Mapping[str, Any]) -> tuple[Allocation, ...]:
    """Return the allocations that a run was given; empty for a search."""
    given = header.get("given")
    if given is None:
        return ()
    float(given["learning_rate"]), str(given["reason"])  # what the readers of a header rely on
    return tuple(Allocation.from_json(a) for a in given["allocations"])


def check_same_given(path: Path, header: Mapping[str, Any], given: Given | None) -> None:
    """Refuse to continue the journal ``path`` of a run that was given other allocations, or none.

    Raises:
        JournalError: If they differ.
    """
    before, now = header.get("given"), None if given is None else given.to_json()
    if before == now or (before and now and {**before, "reason": ""} == {**now, "reason": ""}):
        return
    def said(value: Mapping[str, Any] | None) -> str:
        return "searches" if value is None else "trains another given allocation" if value is now and before else \
            "trains a given allocation"
    raise JournalError(f"the journal {path} belongs to a run that {said(before)}, and this one {said(now)}; nothing in "
                       "its folder was touched: continue it with the task and allocation that it was started with, or "
                       "start a new run with another out=")
