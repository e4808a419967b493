"""A health card: one question about a run's result, with a status, one sentence and what to do."""

from dataclasses import dataclass
from typing import Final

PASS: Final = "pass"
WARN: Final = "warn"
FAIL: Final = "fail"
UNKNOWN: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Card:
    """One question about a run's result.

    Args:
        name: Key for scripts.
        question: A few words for people.
        status: ``PASS``, ``WARN``, ``FAIL`` or ``UNKNOWN``.
        finding: One sentence with the numbers.
        action: What to do about it; empty where nothing is to be done.
    """

    name: str
    question: str
    status: str
    finding: str
    action: str = ""
