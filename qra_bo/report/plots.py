"""Figures of a report, and their catalogue.

A figure is a function and, under the same name, its title, caption and alternative text in
``templates/figures.html.jinja``. It returns ``None`` where the journal lacks the data.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qra_bo.memory.budget import format_size
from qra_bo.report import style
from qra_bo.report.data import BREAKDOWN, ReportData
from qra_bo.report.style import axes, dress, figure, legend, literal, png_bytes
from qra_bo.report.text import short_names
from qra_bo.space.cost import pareto_front
from qra_bo.study.state import loss_of
from qra_bo.trials import Trial
from qra_bo.utils.formatting import signed

VIEW_SHARE = 0.75
"""Share of the points that the loss axis must show; higher points are drawn at the edge, marked as such."""
GROUPS = {"": ("search", "o", style.BLUE, 26.0), "baseline": ("simple choices", "s", style.ORANGE, 46.0),
          "reference": ("references", "D", style.PURPLE, 46.0)}
"""Label, mark, colour and area of trials by their stage; ``""`` for all other stages."""
FEW_UNITS = 48
"""Most units that are named one by one, with their values."""


def pareto(d: ReportData) -> Figure | None:
    """Loss against predicted bytes with uniform baselines, references, budget and front; ``None`` without points."""
    if not d.points:
        return None
    fig, ax = axes(8.0, 4.6)
    top = _top(d.points, d.study.best_uniform)
    for stage, (label, marker, colour, area) in GROUPS.items():
        group = [e for e in d.points if (e.stage if e.stage in GROUPS else "") == stage]
        for shown, shape, name in (([e for e in group if loss_of(e) <= top], marker, label),
                                   ([e for e in group if loss_of(e) > top], "^", f"{label} above the view")):
            if shown:
                ax.scatter([e.predicted_bytes / style.MB for e in shown], [min(loss_of(e), top) for e in shown],
                           marker=shape, label=name, color=colour, s=area, edgecolors=style.PAPER, linewidths=0.6,
                           zorder=4)
    front = pareto_front(np.array([loss_of(e) for e in d.points]), np.array([e.predicted_bytes for e in d.points]))
    steps = [e for e in (d.points[i] for i in reversed(front)) if loss_of(e) <= top]
    ax.plot([e.predicted_bytes / style.MB for e in steps], [loss_of(e) for e in steps], color=style.GREEN,
            linewidth=1.4, drawstyle="steps-post", label="Pareto front", zorder=2)
    ax.axvline(d.header.budget_bytes / style.MB, color=style.INK, linestyle="--", linewidth=1.2,
               label=f"budget {format_size(d.header.budget_bytes)}")
    winner = d.winner_point
    if winner is not None:
        ax.scatter([winner.predicted_bytes / style.MB], [min(loss_of(winner), top)], marker="*", s=220,
                   color=style.VERMILLION, edgecolors=style.PAPER, label="chosen", zorder=6)
    ax.margins(x=0.12, y=0.1)
    dress(ax, f"predicted {d.header.scope} memory (MB)", f"validation {d.loss_text}")
    legend(fig, ax)
    return fig


def _top(points: Sequence[Trial], uniform: Trial | None) -> float:
    """Upper end of the loss axis: shows the best ``VIEW_SHARE`` of the points, ``uniform`` too, and some room."""
    losses = [loss_of(e) for e in points]
    low, cut, high = min(losses), float(np.quantile(losses, VIEW_SHARE)), max(losses)
    top = high if high - low <= 3 * (cut - low) else cut + 0.6 * (cut - low)
    return top if uniform is None else max(top, min(high, 1.2 * loss_of(uniform) - 0.2 * low))


def final(d: ReportData) -> Figure | None:
    """Losses of the final fine-tune by step, and the step that is delivered; ``None`` before it."""
    found = d.study.final
    if found is None:
        return None
    fig, ax = axes(8.0, 3.6)
    if found.training:
        ax.plot(*zip(*found.training, strict=True), color=style.ORANGE, linewidth=1.0, label="training loss")
    steps, losses = zip(*found.curve, strict=True)
    ax.plot(steps, losses, color=style.BLUE, linewidth=1.6, marker="o", markersize=4.5, label="validation loss")
    kept = found.kept_step
    ax.scatter([kept], [dict(found.curve)[kept]], marker="*", s=220, color=style.VERMILLION, edgecolors=style.PAPER,
               label="delivered", zorder=5)
    if found.steps < found.planned_steps:
        ax.axvline(found.steps, color=style.INK, linestyle=":", linewidth=1.2,
                   label=f"ended early (of {found.planned_steps:,} steps)")
    ax.set_xlim(0, 1.03 * max(steps))
    dress(ax, "optimiser steps of the final fine-tune", "loss (nats per token)")
    legend(fig, ax)
    return fig


def confirmation(d: ReportData) -> Figure | None:
    """Paired differences on unseen seeds with mean and interval; ``None`` where two allocations were not compared."""
    c = d.study.confirmation
    if c is None or not c.differences or c.candidate == c.reference:
        return None
    fig, ax = axes(8.0, 2.6)
    ax.axvline(0, color=style.INK, linewidth=1.2)
    ax.scatter(c.differences, [1.0] * len(c.differences), color=style.BLUE, s=42, zorder=3, alpha=0.9)
    ax.errorbar([c.mean], [0.0], xerr=[[c.mean - c.low], [c.high - c.mean]], color=style.VERMILLION, marker="D",
                markersize=7, capsize=5, linewidth=2, zorder=3)
    ax.annotate(f"{signed(c.mean)}  [{signed(c.low)}, {signed(c.high)}]", (0.5, 0.0), xytext=(0, 10),
                xycoords=("axes fraction", "data"), textcoords="offset points", ha="center", fontsize=9, zorder=4,
                color=style.INK, bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1})
    ax.set_yticks([0.0, 1.0], ["mean, 95 %", "each seed"])
    ax.set_ylim(-0.6, 1.5)
    ax.margins(x=0.08)
    dress(ax, f"difference in test loss{d.header.unit and ' (nats)'}")
    return fig


def allocation(d: ReportData) -> Figure | None:
    """Bits and ranks of the chosen allocation by unit; ``None`` without one."""
    if d.winner is None:
        return None
    fig = figure(8.0, 4.6)
    above, below = fig.subplots(2, 1, sharex=True)
    _bars(above, d.bits(d.winner), d.header.units, "bits", style.BLUE)
    _bars(below, d.winner.ranks, d.header.units, "LoRA rank", style.ORANGE)
    below.set_xlabel("unit", color=style.INK)
    return fig


def _bars(ax: Axes, values: Sequence[int], units: Sequence[str], title: str, colour: str) -> None:
    ax.bar(range(len(values)), values, color=colour, width=0.78)
    dress(ax, y=title)
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.18 * max(*values, 1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    _name_units(ax, short_names(units))
    if len(values) <= FEW_UNITS:
        for i, v in enumerate(values):
            ax.annotate(f"{v}", (i, v), textcoords="offset points", xytext=(0, 2), ha="center", color=style.INK,
                        fontsize=8)


def _name_units(ax: Axes, names: Sequence[str]) -> None:
    """Name every unit on the horizontal axis where there are few."""
    if len(names) <= FEW_UNITS:
        ax.set_xticks(range(len(names)), list(map(literal, names)), rotation=90 if max(map(len, names)) > 3 else 0)


def sensitivity(d: ReportData) -> Figure | None:
    """Divergence from the 16-bit model when each unit alone is quantised, by format, and the gain of adapter capacity.
    """
    if d.study.profile is None:
        return None
    p = d.study.profile.profile
    rank = p.rank_sensitivity
    fig = figure(8.0, 5.4 if rank is not None else 3.8)
    above, *below = fig.subplots(1 + (rank is not None), 1, sharex=True, squeeze=False)[:, 0]
    x = np.arange(len(p.units))
    for j, name in enumerate(p.formats):
        above.plot(x, p.quantization_kl[:, j], color=style.SERIES[j % len(style.SERIES)], label=literal(name),
                   marker=style.MARKERS[j % len(style.MARKERS)], markersize=5, linewidth=1.3)
    sizes = np.abs(p.quantization_kl[p.quantization_kl != 0])
    least = max(float(np.quantile(sizes, 0.1)), 1e-5) if sizes.size else 1e-3
    above.set_yscale("symlog", linthresh=least, linscale=0.6)
    above.yaxis.set_major_formatter("{x:g}")
    above.minorticks_off()
    dress(above, y="divergence (nats)", title="Quantisation: only this unit quantised")
    legend(fig, above)
    if rank is not None:
        below[0].bar(x, rank[:, -1], color=style.BLUE, width=0.78)
        dress(below[0], y="gain (first order)", title=f"Adapter capacity: rank {rank.shape[1]} in this unit")
        below[0].grid(False, axis="x")
    last = [above, *below][-1]
    _name_units(last, short_names(p.units))
    last.set_xlabel("unit", color=style.INK)
    return fig


def memory(d: ReportData) -> Figure | None:
    """Waterfall of predicted bytes against measured bytes and budget; ``None`` before the end."""
    if d.winner is None or d.study.end is None:
        return None
    parts = [(label, size) for key, label in BREAKDOWN.items() if (size := d.study.end.breakdown.get(key, 0)) > 0]
    ends = np.cumsum([0, *(n for _, n in parts)])
    bars = [(label, start, n, style.BLUE) for (label, n), start in zip(parts, ends, strict=False)]
    bars.append(("predicted", 0, int(ends[-1]), style.GREEN))
    m = d.study.measurement(d.winner)
    if m is not None and m.measured_bytes is not None:
        bars.append(("measured", 0, m.measured_bytes, style.VERMILLION))
    fig, ax = axes(8.0, 0.8 + 0.36 * len(bars))
    limit = d.header.budget_bytes
    for y, (_, start, n, colour) in enumerate(reversed(bars)):
        ax.barh(y, n / style.MB, left=start / style.MB, color=colour, height=0.7)
        ax.annotate(format_size(n), (1, y), xycoords=("axes fraction", "data"), textcoords="offset points",
                    xytext=(6, 0), va="center", fontsize=8.5, color=style.INK)
    ax.axvline(limit / style.MB, color=style.INK, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)])
    dress(ax, f"{d.header.scope} memory (MB)", title=f"dashed: the budget, {format_size(limit)}")
    ax.grid(False, axis="y")
    return fig


PLOTS: dict[str, Callable[[ReportData], Figure | None]] = {
    "confirmation": confirmation, "pareto": pareto, "allocation": allocation,
    "sensitivity": sensitivity, "memory": memory, "final": final}
"""Figures of one run, by name, in the order of the page."""


def write_plots(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Write every figure that there is into ``folder`` as PNG; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{name}.png": fig for name, fig in figures.items() if fig is not None}
    for path, fig in drawn.items():
        path.write_bytes(png_bytes(fig))
    return list(drawn)
