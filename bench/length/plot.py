"""Figure of the length study: difference to the best uniform choice against tokens trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from qra_bo.report.style import BLUE, LIGHT, ORANGE, VERMILLION, dress, figure, legend

COLOURS = (VERMILLION, BLUE, ORANGE)
MARKERS = "osD"


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel for each text: every find's paired difference with its 95 % interval; unfinished ones are left out."""
    finds = [r for r in rows if r["minus_best_uniform"] is not None]
    tasks, limits = (list(dict.fromkeys(r[key] for r in finds)) for key in ("task", "limit"))
    fig = figure(LIGHT, 5.5 * len(tasks), 4.4)
    panels = fig.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for ax, task in zip(panels, tasks, strict=True):
        for limit in limits:
            names = dict.fromkeys(r["name"] for r in finds if r["limit"] == limit)
            for i, name in enumerate(names):
                points = sorted(((r["tokens"], r["minus_best_uniform"]) for r in finds
                                 if (r["task"], r["name"]) == (task, name)),
                                key=lambda p: float(p[0]))
                means = [d["mean"] for _, d in points]
                ax.errorbar([tokens * (0.97 + 0.03 * i) for tokens, _ in points], means,
                            yerr=[[d["mean"] - d["low"] for _, d in points],
                                  [d["high"] - d["mean"] for _, d in points]],
                            fmt=f"{MARKERS[i % len(MARKERS)]}-", color=COLOURS[limits.index(limit) % len(COLOURS)],
                            capsize=3, linewidth=1.3, markersize=5, label=name)
        ax.axhline(0.0, color=LIGHT.muted, linewidth=1.0)
        ax.set_xscale("log")
        ax.set_xlim(9e3, 5e5)
        dress(ax, LIGHT, "training tokens", "test loss, find minus best uniform" if ax is panels[0] else "", task)
    legend(fig, panels[0], LIGHT, columns=3)
    return fig
