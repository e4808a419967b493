"""Figures of several runs: differences to the uniform baseline, loss against memory, cost, bits and ranks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from qra_bo.report import style
from qra_bo.report.plots_search import front, incumbents
from qra_bo.report.side_by_side import NamedRun, comparable
from qra_bo.report.story import unconfirmed_difference
from qra_bo.report.style import MB, Theme, dress, figure, heatmap, legend, name_units
from qra_bo.report.text import short_names
from qra_bo.study.state import loss_of

DASHES = ("-", "--", "-.", ":")


def _colours(theme: Theme) -> tuple[str, ...]:
    last = style.YELLOW if theme.name == "dark" else theme.muted
    return (theme.main, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, last)


def differences(runs: Sequence[NamedRun], theme: Theme) -> Figure | None:
    """Difference to each run's best uniform baseline, with its interval where confirmed; ``None`` without any."""
    rows = [(run.name, run.data.confirmation, difference) for run in runs
            if (difference := unconfirmed_difference(run.data)) is not None or run.data.confirmation is not None]
    if not rows:
        return None
    fig = figure(theme, 8.0, 1.2 + 0.38 * len(rows))
    ax = fig.add_subplot()
    ax.axvline(0, color=theme.ink, linewidth=1.2)
    for y, (_, c, difference) in enumerate(reversed(rows)):
        if c is None:
            ax.scatter([difference or 0.0], [y], facecolors="none", edgecolors=theme.main, s=46, zorder=3)
        else:
            ax.errorbar([c.mean], [y], xerr=[[c.mean - c.low], [c.high - c.mean]], color=theme.main, marker="D",
                        markersize=6, capsize=4, linewidth=1.8, zorder=3)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    dress(ax, theme, "loss minus that of the best uniform baseline (nats; left of 0: mixed is better)")
    return fig


def memory_loss(runs: Sequence[NamedRun], theme: Theme) -> Figure | None:
    """Fronts of all runs on one pair of axes; ``None`` where their losses are not comparable or there are none."""
    shown = [run for run in runs if run.data.points]
    if not shown or not comparable(runs):
        return None
    fig = figure(theme, 8.0, 4.4)
    ax = fig.add_subplot()
    for i, run in enumerate(shown):
        colour, steps = _colours(theme)[i % 6], front(run.data.points)
        ax.plot([e.predicted_bytes / MB for e in steps], [loss_of(e) for e in steps], color=colour, linewidth=1.5,
                linestyle=DASHES[i % 4], marker=style.MARKERS[i % len(style.MARKERS)], drawstyle="steps-post",
                label=run.name)
        ax.axvline(run.data.header.budget_bytes / MB, color=colour, linestyle=":", linewidth=1)
    dress(ax, theme, f"predicted {shown[0].data.header.scope} memory (MB)", "validation loss (nats per token)")
    legend(fig, ax, theme, columns=3)
    return fig


def convergence(runs: Sequence[NamedRun], theme: Theme) -> Figure | None:
    """Best loss so far against cost for every run; ``None`` where they are not comparable or have nothing yet."""
    shown = [(run, *incumbents(run.data)) for run in runs if run.data.study.points]
    if not shown or not comparable(runs):
        return None
    fig = figure(theme, 8.0, 4.2)
    ax = fig.add_subplot()
    for i, (run, cost, best) in enumerate(shown):
        ax.step(cost, best, where="post", color=_colours(theme)[i % 6], linestyle=DASHES[i % 4], linewidth=1.8,
                label=run.name)
    ax.set_xlim(left=0)
    dress(ax, theme, "cost (full-trial equivalents)", "best validation loss so far (nats per token)")
    legend(fig, ax, theme, columns=3)
    return fig


def allocations(runs: Sequence[NamedRun], theme: Theme) -> Figure | None:
    """Bits and ranks of every winner, a row a run; ``None`` unless all have the same units and one has a winner."""
    shown = [(run.name, run.data.bits(w), w.ranks) for run in runs if (w := run.data.winner) is not None]
    if not shown or len({run.data.header.units for run in runs}) > 1:
        return None
    fig = figure(theme, 8.0, 1.6 + 0.62 * len(shown))
    for ax, title, values in zip(fig.subplots(2, 1, sharex=True), ("bits", "LoRA rank"),
                                 ([b for _, b, _ in shown], [r for _, _, r in shown]), strict=True):
        image = np.array(values, dtype=np.float64)
        heatmap(ax, theme, title, image, [name for name, _, _ in shown], image.max())
        name_units(ax, short_names(runs[0].data.header.units))
    return fig
