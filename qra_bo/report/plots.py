"""Catalogue of a report's figures, and the figures of several runs.

A figure is a function and, under the same name, its title, caption and alternative text in
``templates/figures.html.jinja``. It returns ``None`` where the journal lacks the data.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from qra_bo.report import plots_search, plots_units, style
from qra_bo.report.data import ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import axes, dress, literal, png_bytes
from qra_bo.study.verdict import Evidence


def differences(runs: Sequence[NamedRun]) -> Figure | None:
    """Difference to each run's best uniform baseline, with its interval where confirmed; ``None`` without any.

    A run that compared nothing on unseen seeds has none (its mixed allocation failed there, or it found none), and one
    that delivered another than it chose.
    """
    rows = [(run.name, d) for run in runs if (d := run.data.verdict.versus_uniform) is not None
            and d.evidence in (Evidence.UNSEEN_SEEDS, Evidence.SEARCH)
            and run.data.winner in (run.data.study.chosen, run.data.verdict.candidate)]
    if not rows:
        return None
    fig, ax = axes(8.0, 1.2 + 0.38 * len(rows))
    ax.axvline(0, color=style.INK, linewidth=1.2)
    for y, (_, d) in enumerate(reversed(rows)):
        if d.low is None or d.high is None:
            ax.scatter([d.mean], [y], facecolors="none", edgecolors=style.BLUE, s=46, zorder=3)
        else:
            ax.errorbar([d.mean], [y], xerr=[[d.mean - d.low], [d.high - d.mean]], color=style.BLUE, marker="D",
                        markersize=6, capsize=4, linewidth=1.8, zorder=3)
    ax.set_yticks(range(len(rows)), [literal(name) for name, _ in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    dress(ax, "loss minus that of the best uniform baseline (nats)")
    return fig


PLOTS: dict[str, Callable[[ReportData], Figure | None]] = {
    "confirmation": plots_search.confirmation, "pareto": plots_search.pareto, "allocation": plots_units.allocation,
    "sensitivity": plots_units.sensitivity, "memory": plots_units.memory, "final": plots_search.final}
"""Figures of one run, by name, in the order of the page."""
RUNS_PLOTS: dict[str, Callable[[Sequence[NamedRun]], Figure | None]] = {"differences": differences}
"""Figures of several runs."""


def write_plots(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Write every figure that there is into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{name}.png": fig for name, fig in figures.items() if fig is not None}
    for path, fig in drawn.items():
        path.write_bytes(png_bytes(fig))
    return list(drawn)
