"""Figures of the length study: differences to the best uniform choice against tokens, and losses against bytes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from qra_bo.report.style import BLUE, GREEN, LIGHT, MARKERS, MB, ORANGE, PURPLE, SKY, VERMILLION, dress, figure, legend

COLOURS = (VERMILLION, BLUE, ORANGE)
SHADES = {2: PURPLE, 3: SKY, 4: BLUE, 5: GREEN, 8: ORANGE}
"""Colours of uniform choices by their bits."""
MIXED: Mapping[str, Callable[[Sequence[int]], bool]] = {
    "mixed bits, rank 1 or 2": lambda ranks: max(ranks) <= 2,
    "mixed bits, rank 8": lambda ranks: set(ranks) == {8},
    "mixed bits and ranks": lambda ranks: max(ranks) > 2 and len(set(ranks)) > 1}
"""Which ranks a group of mixed allocations has."""
FAR = 0.45
"""Nats above the best that a panel shows."""


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


def draw_table(rows: Sequence[Mapping[str, Any]], lengths: Mapping[str, int]) -> Figure:
    """One panel for each key of ``lengths``, a loss after so many steps, against stored bytes: a line through the ranks
    of uniform choices of each number of bits, and mixed allocations; those that are far behind are out of sight."""
    fig = figure(LIGHT, 5.5 * len(lengths), 4.4)
    panels = fig.subplots(1, len(lengths), squeeze=False)[0]
    for ax, (key, steps) in zip(panels, lengths.items(), strict=True):
        found = sorted((r for r in rows if r[key] is not None), key=lambda r: float(r["stored_bytes"]))
        uniform = {bits: [r for r in found if _is_uniform(r) and r["average_bits"] == bits] for bits in SHADES}
        for bits, of in uniform.items():
            ax.plot([r["stored_bytes"] / MB for r in of], [r[key] for r in of], "o-", color=SHADES[bits], markersize=4,
                    linewidth=1.3, label=f"uniform {bits} bits, all ranks")
        for (label, inside), marker in zip(MIXED.items(), MARKERS[:len(MIXED)], strict=True):
            of = [r for r in found if not _is_uniform(r) and inside(r["ranks"])]
            ax.plot([r["stored_bytes"] / MB for r in of], [r[key] for r in of], marker, color=VERMILLION,
                    fillstyle="none", markersize=6, label=label)
        if found:
            least = min(r[key] for r in found)
            ax.set_ylim(least - 0.03, least + FAR)
        dress(ax, LIGHT, "stored MB", "validation loss" if ax is panels[0] else "", f"after {steps} steps")
    legend(fig, panels[0], LIGHT)
    return fig


def _is_uniform(row: Mapping[str, Any]) -> bool:
    return len(set(row["formats"])) == 1 == len(set(row["ranks"]))
