"""Figures of the search and of its result: Pareto front, confirmation, final fine-tune."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from qra_bo.report import style
from qra_bo.report.data import ReportData
from qra_bo.report.style import axes, dress, legend
from qra_bo.report.text import size
from qra_bo.study import loss_of
from qra_bo.trials import Trial
from qra_bo.utils.formatting import signed

VIEW_SHARE = 0.75
"""Share of the points that the loss axis must show; higher points are drawn at the edge, marked as such."""
GROUPS = {"": ("search", "o", style.BLUE, 26.0), "baseline": ("simple choices", "s", style.ORANGE, 46.0),
          "reference": ("references", "D", style.PURPLE, 46.0)}
"""Label, mark, colour and area of trials by their stage; ``""`` for all other stages."""


def front(points: Sequence[Trial]) -> list[Trial]:
    """Points that no other beats in both predicted bytes and loss, in increasing order of bytes."""
    out: list[Trial] = []
    for e in sorted(points, key=lambda e: (e.predicted_bytes, loss_of(e))):
        if not out or loss_of(e) < loss_of(out[-1]):
            out.append(e)
    return out


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
    steps = [e for e in front(d.points) if loss_of(e) <= top]
    ax.plot([e.predicted_bytes / style.MB for e in steps], [loss_of(e) for e in steps], color=style.GREEN,
            linewidth=1.4, drawstyle="steps-post", label="Pareto front", zorder=2)
    ax.axvline(d.header.budget_bytes / style.MB, color=style.INK, linestyle="--", linewidth=1.2,
               label=f"budget {size(d.header.budget_bytes)}")
    winner = d.winner_point
    if winner is not None:
        ax.scatter([winner.predicted_bytes / style.MB], [min(loss_of(winner), top)], marker="*", s=220,
                   color=style.VERMILLION, edgecolors=style.PAPER, label="winner", zorder=6)
    ax.margins(x=0.12, y=0.1)
    dress(ax, f"predicted {d.header.scope} memory (MB)", "validation loss (nats per token)")
    legend(fig, ax)
    return fig


def _top(points: Sequence[Trial], uniform: Trial | None) -> float:
    """Upper end of the loss axis: shows the best ``VIEW_SHARE`` of the points, ``uniform`` too, and some room."""
    losses = [loss_of(e) for e in points]
    low, cut, high = min(losses), float(np.quantile(losses, VIEW_SHARE)), max(losses)
    top = high if high - low <= 3 * (cut - low) else cut + 0.6 * (cut - low)
    return top if uniform is None else max(top, min(high, 1.2 * loss_of(uniform) - 0.2 * low))


def final(d: ReportData) -> Figure | None:
    """Validation loss of the final fine-tune by step, and the step that is delivered; ``None`` before it."""
    found = d.study.final
    if found is None:
        return None
    fig, ax = axes(8.0, 3.6)
    steps, losses = zip(*found.curve, strict=True)
    ax.plot(steps, losses, color=style.BLUE, linewidth=1.6, marker="o", markersize=4.5, label="validation loss")
    kept = found.kept_step
    ax.scatter([kept], [dict(found.curve)[kept]], marker="*", s=220, color=style.VERMILLION, edgecolors=style.PAPER,
               label="delivered", zorder=5)
    if found.steps < found.planned_steps:
        ax.axvline(found.steps, color=style.INK, linestyle=":", linewidth=1.2,
                   label=f"ended early (of {found.planned_steps:,} steps)")
    ax.set_xlim(0, 1.03 * max(steps))
    dress(ax, "optimiser steps of the final fine-tune", "validation loss (nats per token)")
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
    dress(ax, f"difference in {c.split} loss (nats)")
    return fig
