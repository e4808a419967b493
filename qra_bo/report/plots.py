"""Catalogue of a report's figures.

A figure is a function and, under the same name, its title, caption and alternative text in
``templates/figures.html.jinja``. It returns ``None`` where the journal lacks the data.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from qra_bo.report import plots_search, plots_units
from qra_bo.report.data import ReportData
from qra_bo.report.style import png_bytes

PLOTS: dict[str, Callable[[ReportData], Figure | None]] = {
    "confirmation": plots_search.confirmation, "pareto": plots_search.pareto, "allocation": plots_units.allocation,
    "sensitivity": plots_units.sensitivity, "memory": plots_units.memory, "final": plots_search.final}
"""Figures of one run, by name, in the order of the page."""


def write_plots(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Write every figure that there is into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{name}.png": fig for name, fig in figures.items() if fig is not None}
    for path, fig in drawn.items():
        path.write_bytes(png_bytes(fig))
    return list(drawn)
