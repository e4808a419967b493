"""Catalogue of a report's figures: name and drawing function of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from qra_bo.report import plots_runs, plots_search, plots_units
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import LIGHT, Theme, png_bytes

T = TypeVar("T")
Runs = Sequence[NamedRun]


@dataclass(frozen=True, slots=True)
class Plot(Generic[T]):
    """One figure of a run (``T`` is ``ReportData``) or of several (``T`` is a sequence of ``NamedRun``).

    Its title, caption, alternative text and reason of absence are in ``templates/figures.html.jinja``.

    Args:
        name: Stem of its file, id of its section.
        draw: Draws it, or returns ``None`` where the journal lacks the data.
    """

    name: str
    draw: Callable[[T, Theme], Figure | None]


PLOTS: tuple[Plot[ReportData], ...] = (
    Plot("confirmation", plots_search.confirmation),
    Plot("pareto", plots_search.pareto),
    Plot("allocation", plots_units.allocation),
    Plot("sensitivity", plots_units.sensitivity),
    Plot("memory", plots_units.memory),
    Plot("convergence", plots_search.convergence),
    Plot("fidelities", plots_search.fidelities),
    Plot("surrogate", plots_search.surrogate),
)
RUNS_PLOTS: tuple[Plot[Runs], ...] = (
    Plot("differences", plots_runs.differences),
    Plot("fronts", plots_runs.memory_loss),
    Plot("costs", plots_runs.convergence),
    Plot("allocations", plots_runs.allocations),
)


def write_plots(d: ReportData, folder: Path) -> list[Path]:
    """Draw every figure that the run has data for into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{plot.name}.png": plot.draw(d, LIGHT) for plot in PLOTS}
    for path, fig in drawn.items():
        if fig is not None:
            path.write_bytes(png_bytes(fig))
    return [path for path, fig in drawn.items() if fig is not None]
