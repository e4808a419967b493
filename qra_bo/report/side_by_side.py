"""Several runs side by side: what each found, where they differ in what makes losses comparable, and one page of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qra_bo.report import story
from qra_bo.report.data import ReportData
from qra_bo.report.text import DASH, describe_allocation, number, signed, size
from qra_bo.trials import rounding_of


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run under the name by which people tell it from the others.

    Args:
        name: E.g. its folder.
        data: What its journal says.
        link: Where its own report lies, as seen from the page, or ``None``.
    """

    name: str
    data: ReportData
    link: str | None = None


def search_loss(d: ReportData) -> float | None:
    """Validation loss of what the run delivers, from the search itself."""
    point = None if d.winner is None else d.point(d.winner)
    return None if point is None else point.loss


def versus(d: ReportData) -> str:
    """Difference to the best uniform choice in words, with its interval where it was confirmed."""
    c = d.confirmation
    if c is not None:
        return f"{signed(c.mean)} [{signed(c.low)}, {signed(c.high)}] {c.winner_kind}"
    difference = unconfirmed(d)
    return DASH if difference is None else f"{signed(difference)} not confirmed"


def unconfirmed(d: ReportData) -> float | None:
    """Validation loss of the incumbent less that of the best uniform choice (nats), at the search's one seed."""
    best, uniform = d.incumbent, d.best_uniform
    if best is None or uniform is None or best.loss is None or uniform.loss is None:
        return None
    return best.loss - uniform.loss


def _allocation(d: ReportData) -> str:
    w = d.winner
    return DASH if w is None else describe_allocation(d.header.units, d.bits(w), w.ranks)


Reader = Callable[[ReportData], str]
SETTING: tuple[tuple[str, Reader], ...] = (
    ("model", lambda d: d.header.model), ("budget", lambda d: size(d.header.budget_bytes)),
    ("scope", lambda d: d.header.scope), ("oracle", lambda d: d.header.oracle),
    ("data", lambda d: str(d.provenance.get("data_sha256", DASH))[:12]),
    ("codes", lambda d: rounding_of(d.header.config)), ("steps", lambda d: str(d.header.high_steps)))
"""What two runs must share for their losses to be comparable."""
FOUND: tuple[tuple[str, Reader], ...] = (
    ("method", lambda d: d.header.method), ("search seed", lambda d: str(d.header.seed)),
    ("search loss", lambda d: number(search_loss(d))), ("versus best uniform", versus),
    ("gap closed", lambda d: story.gap_closed(d) or DASH),
    ("cost (evaluations)", lambda d: number(d.equivalents, 1)), ("state", lambda d: d.state),
    ("bits and ranks", _allocation))


def facts(runs: Sequence[NamedRun]) -> list[tuple[str, ...]]:
    """One row for every fact: its title, then what it is in each run."""
    return [(title, *(read(run.data) for run in runs)) for title, read in (*SETTING, *FOUND)]


def caveats(runs: Sequence[NamedRun]) -> list[str]:
    """Where the runs differ in what makes losses comparable, and which of them trained no model."""
    out = [f"The runs differ in {title}: their losses are not comparable as they stand."
           for title, read in SETTING if len({read(run.data) for run in runs}) > 1]
    return out + [f"{run.name}: {run.data.proxy_label}." for run in runs if run.data.proxy_label]


def comparable(runs: Sequence[NamedRun]) -> bool:
    """Whether losses of all runs may be drawn on one axis: all that matters but the budget is the same."""
    return all(len({read(run.data) for run in runs}) == 1 for title, read in SETTING if title != "budget")
