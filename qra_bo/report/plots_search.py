"""Figures of the search: Pareto front, convergence, confirmation, fidelities, surrogate."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qra_bo.report import story
from qra_bo.report.data import ReportData
from qra_bo.report.style import GREEN, ORANGE, PURPLE, VERMILLION, Theme, dress, figure, legend
from qra_bo.report.text import number, signed, size
from qra_bo.study.cost import FORWARD_SHARE, cost_of
from qra_bo.trials import Trial

MB = 1e6
VIEW_SHARE = 0.75
"""Share of the points that the loss axis must show; what lies above is drawn at the edge, marked so."""
CLOSE_SHARE = 0.5
"""The same in close-ups, which are there for the better half; the best uniform choice is shown in any case."""

NEAR_SHARE = 0.06
"""Distance from the budget, as a share of it, that the close-up of the Pareto figure shows."""
LEAST_PAIRS = 3
"""Of two lengths of training that are worth a figure."""


def front(points: Sequence[Trial]) -> list[Trial]:
    """Points that no other beats in both predicted bytes and loss, in increasing order of bytes."""
    out: list[Trial] = []
    for e in sorted(points, key=lambda e: (e.predicted_bytes, _loss(e))):
        if not out or _loss(e) < _loss(out[-1]):
            out.append(e)
    return out


def pareto(d: ReportData, theme: Theme) -> Figure | None:
    """Loss against predicted bytes with uniform choices, references, budget and front; ``None`` without points."""
    if not d.points:
        return None
    fig = figure(theme, 8.4, 4.6)
    limit = d.header.budget_bytes
    close = [e for e in d.points if abs(e.predicted_bytes - limit) <= NEAR_SHARE * limit]
    both = 2 < len(close) < len(d.points)
    whole, *near = fig.subplots(1, 1 + both, squeeze=False, width_ratios=(1, 1.5)[:1 + both])[0]
    _pareto_panel(whole, d, theme, d.points, _view_top([_loss(e) for e in d.points]))
    memory = f"predicted {d.header.scope} memory (MB)"
    dress(whole, theme, memory, "validation loss (nats per token)", "all")
    for ax in near:
        _pareto_panel(ax, d, theme, close, _close_top(d, close))
        dress(ax, theme, memory, title=f"within {100 * NEAR_SHARE:.0f} % of the budget")
    legend(fig, whole, theme)
    return fig


def _pareto_panel(ax: Axes, d: ReportData, theme: Theme, points: Sequence[Trial], top: float) -> None:
    kinds: dict[str, list[Trial]] = {"search": [], "baseline": [], "reference": []}
    for e in points:
        kinds[e.stage if e.stage in kinds else "search"].append(e)
    styles = (("search", "o", theme.main, "search", 26.0), ("baseline", "s", ORANGE, "uniform choices", 46.0),
              ("reference", "D", PURPLE, "references", 46.0))
    sizes = {e.id: e.predicted_bytes / MB for e in points}
    for kind, marker, colour, label, area in styles:
        _scatter(ax, sizes, kinds[kind], top, marker=marker, color=colour, label=label, area=area, edge=theme.paper)
    steps = [e for e in front(points) if _loss(e) <= top]
    ax.plot([e.predicted_bytes / MB for e in steps], [_loss(e) for e in steps], color=GREEN, linewidth=1.4,
            drawstyle="steps-post", label="Pareto front", zorder=2)
    ax.axvline(d.header.budget_bytes / MB, color=theme.ink, linestyle="--", linewidth=1.2,
               label=f"budget {size(d.header.budget_bytes)}")
    winner = None if d.winner is None else d.point(d.winner)
    if winner is not None:
        ax.scatter([winner.predicted_bytes / MB], [min(_loss(winner), top)], marker="*", s=220, color=VERMILLION,
                   edgecolors=theme.paper, label="winner", zorder=6)
    ax.margins(x=0.12, y=0.1)
    named = [(e, d.name(e.allocation, e.spec.codes).removeprefix("uniform-"))
             for e in (*kinds["baseline"], *kinds["reference"])]
    _label_points(ax, named, top, theme)


def _close_top(d: ReportData, points: Sequence[Trial]) -> float:
    """Upper end of the loss axis of a close-up: shows the better half of the points and the best uniform choice."""
    losses = [_loss(e) for e in points]
    top = _view_top(losses, CLOSE_SHARE)
    if d.best_uniform is None:
        return top
    return max(top, min(max(losses), 1.2 * _loss(d.best_uniform) - 0.2 * min(losses)))


def _view_top(losses: list[float], share: float = VIEW_SHARE) -> float:
    """Upper end of the loss axis: shows the best ``share`` of the points and some room."""
    low, cut, high = min(losses), float(np.quantile(losses, share)), max(losses)
    return high if high - low <= 3 * (cut - low) else cut + 0.6 * (cut - low)


def _scatter(ax: Axes, xs: Mapping[int, float], group: Sequence[Trial], top: float, *, marker: str, color: str,
             label: str, area: float, edge: str) -> None:
    """Losses of ``group`` at ``xs`` (by id); those above ``top`` as triangles at the edge."""
    inside = [e for e in group if _loss(e) <= top]
    above = [e for e in group if _loss(e) > top]
    if inside:
        ax.scatter([xs[e.id] for e in inside], [_loss(e) for e in inside], marker=marker, color=color,
                   s=area, label=label, edgecolors=edge, linewidths=0.6, zorder=4)
    if above:
        ax.scatter([xs[e.id] for e in above], [top] * len(above), marker="^", color=color, s=area,
                   edgecolors=edge, linewidths=0.6, zorder=4, label=f"{label} above the view")


def _label_points(ax: Axes, named: Sequence[tuple[Trial, str]], top: float, theme: Theme) -> None:
    """Names beside points; of points close together only the best is named."""
    losses = [min(_loss(e), top) for e, _ in named]
    sizes = [e.predicted_bytes / MB for e, _ in named]
    if not named:
        return
    (left, right), (bottom, ceiling) = ax.get_xlim(), ax.get_ylim()
    near_x, near_y = 0.3 * (right - left), 0.05 * (ceiling - bottom)
    placed: list[tuple[float, float]] = []
    for i in np.argsort(losses, kind="stable"):
        x, y = sizes[int(i)], losses[int(i)]
        if any(abs(x - px) < near_x and abs(y - py) < near_y for px, py in placed):
            continue
        placed.append((x, y))
        e, text = named[int(i)]
        above = f"{text} ({_loss(e):.2f})" if _loss(e) > top else text
        to_left = x > left + 0.6 * (right - left)
        ax.annotate(above, (x, y), textcoords="offset points", xytext=(-7 if to_left else 7, 5), fontsize=8,
                    color=theme.ink, zorder=7, ha="right" if to_left else "left",
                    bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.75, "pad": 0.8})


def incumbents(d: ReportData) -> tuple[list[float], list[float]]:
    """Cost (high-fidelity evaluations) when each candidate was known and the least loss by then; the last pair is the
    cost of everything so far."""
    unit = d.header.full_trial_tokens
    training, forward = d.profile_tokens
    spent = training + FORWARD_SHARE * forward
    allowed = {e.id for e in d.candidates}
    cost: list[float] = []
    best: list[float] = []
    for e in d.trials:
        spent += cost_of(e).tokens
        if e.id in allowed:
            cost.append(spent / unit)
            best.append(min(_loss(e), best[-1] if best else np.inf))
    return [*cost, spent / unit], [*best, best[-1]]


def convergence(d: ReportData, theme: Theme) -> Figure | None:
    """Best loss so far against cost in high-fidelity evaluations; ``None`` before the first one."""
    if not d.candidates:
        return None
    fig = figure(theme, 8.0, 4.2)
    ax = fig.add_subplot()
    cost, best = incumbents(d)
    xs, top = {e.id: x for e, x in zip(d.candidates, cost, strict=False)}, _close_top(d, d.candidates)
    base = [e for e in d.candidates if e.stage == "baseline"]
    searched = [e for e in d.candidates if e.stage != "baseline"]
    _scatter(ax, xs, searched, top, marker="o", color=theme.main, label="search", area=22, edge=theme.paper)
    _scatter(ax, xs, base, top, marker="s", color=ORANGE, label="uniform choices", area=32, edge=theme.paper)
    ax.step(cost, np.minimum(best, top), where="post", color=VERMILLION, linewidth=2, label="best so far")
    if d.best_uniform is not None:
        ax.axhline(_loss(d.best_uniform), color=ORANGE, linestyle="--", linewidth=1.2, label="best uniform that fits")
    ax.set_xlim(left=0)
    dress(ax, theme, "cost (high-fidelity evaluations; profile, calibration, low fidelity and failures included)",
          "validation loss (nats per token)")
    legend(fig, ax, theme, columns=6)
    return fig


def confirmation(d: ReportData, theme: Theme) -> Figure | None:
    """Paired differences on unseen seeds with mean and interval; ``None`` without a confirmation."""
    c = d.confirmation
    if c is None:
        return None
    fig = figure(theme, 8.0, 2.6)
    ax = fig.add_subplot()
    ax.axvline(0, color=theme.ink, linewidth=1.2)
    ax.scatter(c.differences, [1.0] * len(c.differences), color=theme.main, s=42, zorder=3, alpha=0.9)
    ax.errorbar([c.mean], [0.0], xerr=[[c.mean - c.low], [c.high - c.mean]], color=VERMILLION, marker="D",
                markersize=7, capsize=5, linewidth=2, zorder=3)
    ax.annotate(f"{signed(c.mean)}  [{signed(c.low)}, {signed(c.high)}]", (c.mean, 0.0), textcoords="offset points",
                xytext=(0, 9), ha="left" if c.mean < 0 else "right", fontsize=9, color=theme.ink)
    ax.set_yticks([0.0, 1.0], ["mean, 95 %", "each seed"])
    ax.set_ylim(-0.6, 1.5)
    reach = 1.25 * max(1e-4, *(abs(v) for v in (*c.differences, c.low, c.high)))
    ax.set_xlim(-reach, reach)
    dress(ax, theme, f"{c.split} loss: best mixed allocation minus best uniform (nats; left of 0: mixed is better)")
    return fig


def fidelities(d: ReportData, theme: Theme) -> Figure | None:
    """Low against high fidelity of the same allocation, and the search's length against the ranking check's longer one,
    each where there are at least three pairs of it; ``None`` where there is neither."""
    pairs, longer = story.low_high(d), d.ranking_check
    early, late = len(pairs) >= LEAST_PAIRS, longer is not None and len(longer["losses"]) >= LEAST_PAIRS
    if not early and not late:
        return None
    fig = figure(theme, 8.0 if early and late else 5.4, 4.2)
    panels = list(fig.subplots(1, early + late, squeeze=False)[0])
    if early:
        _early_pairs(panels.pop(0), theme, d, pairs)
    if longer is not None and late:
        searched, checked = [float(v) for v in longer["search_losses"]], [float(v) for v in longer["losses"]]
        panels[0].scatter(searched, checked, color=theme.main, s=52, edgecolors=theme.muted, linewidths=0.8, zorder=3)
        panels[0].margins(0.15)
        _dress_pairs(panels[0], theme, (d.header.high_steps, int(longer["steps"])), searched, checked)
    return fig


def _early_pairs(ax: Axes, theme: Theme, d: ReportData, pairs: Sequence[tuple[float, Trial]]) -> None:
    low, high = [a for a, _ in pairs], [_loss(b) for _, b in pairs]
    ranks = [float(np.mean(b.allocation.ranks)) for _, b in pairs]
    inside = [i for i, loss in enumerate(high) if loss <= _view_top(high)]
    x, y, shown = ([values[i] for i in inside] for values in (low, high, ranks))
    dots = ax.scatter(x, y, c=shown, cmap=theme.cmap, s=52, edgecolors=theme.muted, linewidths=0.8, zorder=3)
    bar = ax.figure.colorbar(dots, ax=ax)
    bar.set_label("average rank", color=theme.ink)
    bar.outline.set_edgecolor(theme.muted)
    bar.ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5)
    _dress_pairs(ax, theme, (d.header.low_steps or 0, d.header.high_steps), low, high, len(high) - len(inside))


def _dress_pairs(ax: Axes, theme: Theme, steps: tuple[int, int], x: list[float], y: list[float],
                 above: int = 0) -> None:
    rho = story.rank_correlation(x, y)
    kept = "" if rho is None else f": Spearman {number(rho, 2)}"
    cut = f" ({above} above the view)" if above else ""
    dress(ax, theme, f"loss after {steps[0]} steps", f"loss after {steps[1]} steps", f"{len(x)} allocations{cut}{kept}")


def surrogate(d: ReportData, theme: Theme) -> Figure | None:
    """Leave-one-out predictions of the surrogate against what was measured; ``None`` where not recorded."""
    check = d.surrogate_check
    if check is None or len(check["observed"]) < 3:
        return None
    observed, predicted = np.array(check["observed"], float), np.array(check["predicted"], float)
    sd = np.array(check["sd"], float)
    inside = float(np.mean(np.abs(observed - predicted) <= 1.96 * sd))
    fig = figure(theme, 8.4, 4.2)
    better = observed <= np.median(observed)
    everything = np.ones(len(observed), dtype=bool)
    titles = (f"{100 * inside:.0f} % of {len(observed)} lie within their 95 % interval", "the better half of them")
    for ax, shown, title in zip(fig.subplots(1, 2), (everything, better), titles, strict=True):
        x, y, bar = observed[shown], predicted[shown], 1.96 * sd[shown]
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color=theme.ink, linewidth=1, linestyle="--", zorder=2)
        ax.errorbar(x, y, yerr=bar, fmt="o", color=theme.main, markersize=5, linewidth=1, zorder=3)
        dress(ax, theme, "measured loss", "" if ax.get_subplotspec().colspan.start else "predicted without it (95 %)",
              title)
    return fig


def _loss(e: Trial) -> float:
    return float("inf") if e.loss is None else e.loss
