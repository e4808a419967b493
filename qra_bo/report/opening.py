"""Terminal text at the start of a run: what uniform choices need of the budget, and a passage of embedded data."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from qra_bo.report.tables import print_line
from qra_bo.report.text import size
from qra_bo.utils.redact import printable

BAR = 24
"""Characters of a bar whose whole is the budget."""
SHOWN = 400
"""Characters of a passage."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one format needs on every unit.

    Args:
        least: Predicted bytes with rank 1.
        largest: Largest rank that fits; 0 where none does.
        searched: Whether the run may use the format.
    """

    fmt: str
    bits: int
    least: int
    largest: int
    searched: bool = True


def print_needs(console: Console, title: str, budget: int, needs: Sequence[Need]) -> None:
    """Print a bar for every format: its bytes with rank 1 as a share of ``budget`` bytes."""
    print_line(console, title)
    width = max(len(need.fmt) for need in needs)
    for need in needs:
        filled = min(BAR, round(BAR * need.least / budget))
        over = ">" if need.least > budget else " "
        fits = f"fits, up to rank {need.largest}" if need.largest else "does not fit"
        fits += "" if need.searched else " (not among this run's bits)"
        print_line(console, f"  {need.bits:2d} bits {need.fmt:<{width}} [{'#' * filled:<{BAR}}]{over} "
                            f"{size(need.least):>9} with rank 1: {fits}")


def print_passage(console: Console, source: str, text: str) -> None:
    """Print the beginning of a training text, all of which is trained."""
    print_line(console, f"Data: {source}; all text is trained. It begins:")
    for line in printable(text[:SHOWN]).splitlines():
        if line.strip():
            print_line(console, f"  | {line}")
