"""Figures of the search: Pareto front, convergence, confirmation, surrogate."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from qra_bo.report import style
from qra_bo.report.data import ReportData
from qra_bo.report.style import axes, dress, figure, legend
from qra_bo.report.text import size
from qra_bo.study import Cost, cost_of, loss_of
from qra_bo.trials import Trial
from qra_bo.utils.formatting import signed

LEAST_PAIRS = 3
"""Losses that a figure of predictions needs."""
VIEW_SHARE = 0.75
"""Share of the points that the loss axis must show; higher points are drawn at the edge, marked as such."""
CLOSE_SHARE = 0.5
"""The same in close-ups; the best uniform baseline is always shown."""
NEAR_SHARE = 0.06
"""Distance from the budget, as a share of it, that the close-up of the Pareto figure shows."""
GROUPS = {"": ("search", "o", style.BLUE, 26.0), "baseline": ("uniform baselines", "s", style.ORANGE, 46.0),
          "reference": ("references", "D", style.PURPLE, 46.0)}
"""Label, mark, colour and area of trials by their stage; ``""`` for all other stages."""
PLACES = (("left", "bottom", (6, 4)), ("right", "bottom", (-6, 4)), ("left", "top", (6, -4)),
          ("right", "top", (-6, -4)), ("center", "bottom", (0, 9)), ("center", "top", (0, -9)))
"""Alignments and offsets (points) of a label, by preference."""
CLEAR = 6
"""Pixels by which a label keeps away from the middle of a mark."""
APART = 3
"""Pixels between two labels: their frames, and other widths at the resolution of a file."""


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
    limit = d.header.budget_bytes
    close = [e for e in d.points if abs(e.predicted_bytes - limit) <= NEAR_SHARE * limit]
    two = 2 < len(close) < len(d.points)
    views: list[tuple[str, Sequence[Trial], float]] = [("all" if two else "", d.points, _top(d.points))]
    if two:
        views.append((f"within {100 * NEAR_SHARE:.0f} % of the budget", close,
                      _top(close, CLOSE_SHARE, d.study.best_uniform)))
    fig = figure(8.4, 4.6)
    axs = fig.subplots(1, len(views), squeeze=False, width_ratios=(1, 1.5)[:len(views)])[0]
    for ax, (title, points, top) in zip(axs, views, strict=True):
        _pareto_panel(ax, d, points, top)
        dress(ax, f"predicted {d.header.scope} memory (MB)",
              "validation loss (nats per token)" if ax is axs[0] else "", title)
    legend(fig, axs[0])
    fig.draw_without_rendering()  # places the panels, so that labels can keep clear of points
    for ax, (_, points, top) in zip(axs, views, strict=True):
        _label_points(ax, d, points, top)
    return fig


def _pareto_panel(ax: Axes, d: ReportData, points: Sequence[Trial], top: float) -> None:
    megabytes = {e.id: e.predicted_bytes / style.MB for e in points}
    _scatter(ax, megabytes, points, top)
    steps = [e for e in front(points) if loss_of(e) <= top]
    ax.plot([megabytes[e.id] for e in steps], [loss_of(e) for e in steps], color=style.GREEN, linewidth=1.4,
            drawstyle="steps-post", label="Pareto front", zorder=2)
    ax.axvline(d.header.budget_bytes / style.MB, color=style.INK, linestyle="--", linewidth=1.2,
               label=f"budget {size(d.header.budget_bytes)}")
    winner = d.winner_point
    if winner is not None:
        ax.scatter([winner.predicted_bytes / style.MB], [min(loss_of(winner), top)], marker="*", s=220,
                   color=style.VERMILLION, edgecolors=style.PAPER, label="winner", zorder=6)
    ax.margins(x=0.12, y=0.1)


def _top(points: Sequence[Trial], share: float = VIEW_SHARE, uniform: Trial | None = None) -> float:
    """Upper end of the loss axis: shows the best ``share`` of the points, ``uniform`` too, and some room."""
    losses = [loss_of(e) for e in points]
    low, cut, high = min(losses), float(np.quantile(losses, share)), max(losses)
    top = high if high - low <= 3 * (cut - low) else cut + 0.6 * (cut - low)
    return top if uniform is None else max(top, min(high, 1.2 * loss_of(uniform) - 0.2 * low))


def _scatter(ax: Axes, xs: Mapping[int, float], points: Sequence[Trial], top: float) -> None:
    """Draw losses at ``xs`` (by id) in the marks of ``GROUPS``; those above ``top`` as triangles at the edge."""
    for stage, (label, marker, colour, area) in GROUPS.items():
        group = [e for e in points if (e.stage if e.stage in GROUPS else "") == stage]
        for shown, shape, name in (([e for e in group if loss_of(e) <= top], marker, label),
                                   ([e for e in group if loss_of(e) > top], "^", f"{label} above the view")):
            if shown:
                ax.scatter([xs[e.id] for e in shown], [min(loss_of(e), top) for e in shown], marker=shape, label=name,
                           color=colour, s=area, edgecolors=style.PAPER, linewidths=0.6, zorder=4)


def _label_points(ax: Axes, d: ReportData, points: Sequence[Trial], top: float) -> None:
    """Name baselines and references, the best first, each where its text covers no other point, else where there is
    room; one whose text would cover another text, or lie outside the panel, is not named."""
    at = {e.id: (e.predicted_bytes / style.MB, min(loss_of(e), top)) for e in points}
    marks = ax.transData.transform(list(at.values()))
    placed: list[Bbox] = []
    for e in sorted((e for e in points if e.stage in ("baseline", "reference")), key=lambda e: (at[e.id][1], e.id)):
        text = d.study.name(e.allocation, e.spec.codes).removeprefix("uniform-")
        for most, (horizontal, vertical, offset) in itertools.product((1, len(marks)), PLACES):
            label = ax.annotate(f"{text} ({loss_of(e):.2f})" if loss_of(e) > top else text, at[e.id], fontsize=8,
                                ha=horizontal, va=vertical, xytext=offset, textcoords="offset points", color=style.INK,
                                zorder=7, bbox={"facecolor": style.PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1})
            box = label.get_window_extent()
            if ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1) \
                    and box.padded(CLEAR).count_contains(marks) <= most \
                    and not any(box.overlaps(other.padded(APART)) for other in placed):
                placed.append(box)
                break
            label.remove()


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


def incumbents(d: ReportData) -> tuple[list[float], list[float]]:
    """Cost (full-trial equivalents) when each candidate finished and the least loss by then.

    The last pair is the cost of the whole run so far.
    """
    profile = d.study.profile
    spent = 0.0 if profile is None else Cost(profile.training_tokens, profile.forward_tokens).tokens
    allowed = {e.id for e in d.study.points}
    cost: list[float] = []
    best: list[float] = []
    for e in d.study.trials:
        spent += cost_of(e).tokens
        if e.id in allowed:
            cost.append(spent / d.header.full_trial_tokens)
            best.append(min(loss_of(e), best[-1] if best else np.inf))
    return [*cost, spent / d.header.full_trial_tokens], [*best, best[-1]]


def convergence(d: ReportData) -> Figure | None:
    """Best loss so far against cost in full-trial equivalents; ``None`` before the first full trial."""
    if not d.study.points:
        return None
    fig, ax = axes(8.0, 4.2)
    cost, best = incumbents(d)
    xs = {e.id: x for e, x in zip(d.study.points, cost, strict=False)}
    top = _top(d.study.points, CLOSE_SHARE, d.study.best_uniform)
    _scatter(ax, xs, d.study.points, top)
    ax.step(cost, np.minimum(best, top), where="post", color=style.VERMILLION, linewidth=2, label="best so far")
    if d.study.best_uniform is not None:
        ax.axhline(loss_of(d.study.best_uniform), color=style.ORANGE, linestyle="--", linewidth=1.2,
                   label="best uniform that fits")
    ax.set_xlim(left=0)
    dress(ax, "cost (full-trial equivalents)", "validation loss (nats per token)")
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


def surrogate(d: ReportData) -> Figure | None:
    """Leave-one-out predictions of the surrogate against measured losses; ``None`` where not recorded."""
    check = d.study.surrogate_check
    if check is None or len(check.observed) < LEAST_PAIRS:
        return None
    observed, predicted, sd = (np.array(values, float) for values in (check.observed, check.predicted, check.sd))
    inside = float(np.mean(np.abs(observed - predicted) <= 1.96 * sd))
    title = f"{100 * inside:.0f} % of {len(observed)} lie within their 95 % interval"
    room = max(0.5 * float(np.ptp(observed)), 1e-3)
    low, high = float(observed.min()) - room, float(observed.max()) + room
    fig, ax = axes(8.0, 4.2)
    ax.plot([low, high], [low, high], color=style.INK, linewidth=1, linestyle="--", zorder=2)
    ax.errorbar(observed, predicted, yerr=1.96 * sd, fmt="o", color=style.BLUE, markersize=5, linewidth=1, zorder=3)
    far = (predicted < low) | (predicted > high)
    if far.any():
        ax.scatter(observed[far], np.clip(predicted[far], low, high), marker="X", color=style.VERMILLION, s=60,
                   zorder=4, clip_on=False)
        listed = ", ".join(f"{value:.3g}" for value in sorted(predicted[far])[:3]) + (", ..." if far.sum() > 3 else "")
        title += f"\n{far.sum()} predicted outside the view: {listed}"
    ax.set_ylim(low, high)
    dress(ax, "measured loss", "predicted without it (95 %)", title)
    return fig
