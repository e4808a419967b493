"""Catalogue of a report's figures.

A figure is a function here and, under the same name, its title, caption and alternative text in
``templates/figures.html.jinja``. It returns ``None`` where the journal lacks the data.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from qra_bo.report import plots_runs, plots_search, plots_units
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import LIGHT, Theme, png_bytes

PLOTS: dict[str, Callable[[ReportData, Theme], Figure | None]] = {
    "confirmation": plots_search.confirmation, "pareto": plots_search.pareto, "allocation": plots_units.allocation,
    "sensitivity": plots_units.sensitivity, "memory": plots_units.memory, "convergence": plots_search.convergence,
    "fidelities": plots_search.fidelities, "surrogate": plots_search.surrogate}
"""Figures of one run, by name, in the order of the page."""
RUNS_PLOTS: dict[str, Callable[[Sequence[NamedRun], Theme], Figure | None]] = {
    "differences": plots_runs.differences, "fronts": plots_runs.memory_loss, "costs": plots_runs.convergence,
    "allocations": plots_runs.allocations}
"""Figures of several runs."""


def write_plots(d: ReportData, folder: Path) -> list[Path]:
    """Draw every figure that the run has data for into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{name}.png": draw(d, LIGHT) for name, draw in PLOTS.items()}
    for path, fig in drawn.items():
        if fig is not None:
            path.write_bytes(png_bytes(fig))
    return [path for path, fig in drawn.items() if fig is not None]
