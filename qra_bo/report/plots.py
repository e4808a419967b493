"""Catalogue of a report's figures: name, alternative text and the function that draws each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from qra_bo.report import alt, plots_runs, plots_search, plots_units, story
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import LIGHT, Theme, png_bytes

T = TypeVar("T")
Runs = Sequence[NamedRun]


@dataclass(frozen=True, slots=True)
class Plot(Generic[T]):
    """One figure of a run (``T`` is ``ReportData``) or of several (``T`` is a sequence of ``NamedRun``).

    Its title, caption and reason of absence are in ``templates/figures.html.jinja``.

    Args:
        name: Stem of its file, id of its section.
        shown: Its alternative text, with its numbers.
        draw: Draws it, or returns ``None`` where the journal lacks the data.
    """

    name: str
    shown: Callable[[T], str]
    draw: Callable[[T, Theme], Figure | None]


def _each(shown: Callable[[ReportData], str]) -> Callable[[Runs], str]:
    """The alternative text of several runs, each under its name."""
    return lambda runs: " ".join(f"{run.name}: {shown(run.data)}" for run in runs)


PLOTS: tuple[Plot[ReportData], ...] = (
    Plot("confirmation", alt.confirmation, plots_search.confirmation),
    Plot("pareto", alt.pareto, plots_search.pareto),
    Plot("allocation", alt.allocation, plots_units.allocation),
    Plot("sensitivity", alt.sensitivity, plots_units.sensitivity),
    Plot("memory", alt.memory, plots_units.memory),
    Plot("convergence", alt.convergence, plots_search.convergence),
    Plot("fidelities", alt.fidelities, plots_search.fidelities),
    Plot("surrogate", alt.surrogate, plots_search.surrogate),
)
RUNS_PLOTS: tuple[Plot[Runs], ...] = (
    Plot("differences", _each(story.versus), plots_runs.differences),
    Plot("fronts", _each(alt.pareto), plots_runs.memory_loss),
    Plot("costs", _each(alt.convergence), plots_runs.convergence),
    Plot("allocations", _each(alt.allocation), plots_runs.allocations),
)


def write_plots(d: ReportData, folder: Path) -> list[Path]:
    """Draw every figure that the run has data for into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{plot.name}.png": plot.draw(d, LIGHT) for plot in PLOTS}
    for path, fig in drawn.items():
        if fig is not None:
            path.write_bytes(png_bytes(fig))
    return [path for path, fig in drawn.items() if fig is not None]
