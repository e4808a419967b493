"""``table1.png``: test loss against peak and stored memory, with the Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.table1.results import proxy_label
from qra_bo.report.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILLION,
    dress,
    figure,
    legend,
)

FAMILIES = {"qra_bo": ("qra_bo", "*", VERMILLION), "best_uniform": ("best uniform that fits", "s", BLUE),
            "autoqra": ("AutoQRA as published", "P", GREEN), "qr_adaptor": ("QR-Adaptor", "X", SKY)}
"""Label, mark and colour of a method and its variants, by the beginning of their names."""
OTHERS = ("other methods", "o", ORANGE)
NAMED = {"lora_16": "LoRA, 16 bits", "qlora": "QLoRA", "qlora_gptq": "QLoRA, GPTQ"}
"""Rows that are labelled beside their mark."""
CHOSEN = "_gptq"
"""End of the name of a row with codes by GPTQ: its mark is filled."""
HEADROOM = 0.6
"""Share of the span from the best loss to QLoRA's that is shown above QLoRA's; higher losses are marked at the edge."""
Row = Mapping[str, Any]


def draw(table: Mapping[str, Any]) -> Figure | None:
    """Draw two panels, peak and stored memory; ``None`` if no row has a loss."""
    rows = [r for r in table["rows"] if r["mean"] is not None]
    if not rows:
        return None
    fig = figure(11.0, 4.6)
    left, right = fig.subplots(1, 2, sharey=True)
    _panel(left, rows, "peak_bytes", "Peak memory of training (MB)")
    _panel(right, rows, "stored_bytes", "Stored weights and adapters (MB)")
    left.set_ylabel("Test loss (nats per token)", color=INK)
    label = proxy_label(table)
    if label is not None:
        fig.suptitle(label, color=INK)
    legend(fig, left)
    return fig


def front(rows: Sequence[Row], key: str) -> list[Row]:
    """Return the Pareto front of memory and loss, by increasing memory."""
    found: list[Row] = []
    for r in sorted(rows, key=lambda r: (r[key], r["mean"])):
        if not found or r["mean"] < found[-1]["mean"]:
            found.append(r)
    return found


def _panel(ax: Axes, rows: Sequence[Row], key: str, label_x: str) -> None:
    best = min(r["mean"] for r in rows)
    qlora = next((r["mean"] for r in rows if r["method"] == "qlora"), max(r["mean"] for r in rows))
    top = qlora + HEADROOM * max(qlora - best, 1e-6)
    seen: set[str] = set()
    for r in rows:
        label, mark, colour = ("", "D", PURPLE) if r["method"] in NAMED else next(
            (look for name, look in FAMILIES.items() if r["method"].startswith(name)), OTHERS)
        above, chosen = r["mean"] > top, r["method"].endswith(CHOSEN)
        at = (r[key] / 1e6, min(r["mean"], top))
        ax.errorbar(*at, yerr=None if above else r["se"], fmt="^" if above else mark, color=colour,
                    markersize=(11 if mark == "*" else 6.5) if not above else 5, linestyle="none", capsize=2, zorder=3,
                    markerfacecolor=colour if chosen else PAPER,
                    label=None if above or not label or label in seen else label)
        if not above:
            seen.add(label)
        if r["method"] in NAMED:
            last = r[key] == max(row[key] for row in rows)
            ax.annotate(NAMED[r["method"]], at, textcoords="offset points", fontsize=8.5,
                        xytext=(0, 9) if last else (9, 7), ha="center" if last else "left", color=INK, zorder=4)
    line = front([r for r in rows if r["mean"] <= top], key)
    ax.step([r[key] / 1e6 for r in line], [r["mean"] for r in line], where="post", color=MUTED, linewidth=1.0,
            zorder=1, label="front")
    ax.plot([], [], marker="o", linestyle="none", color=MUTED, label="filled: codes by GPTQ")
    if any(r["mean"] > top for r in rows):
        ax.annotate("triangles lie above the view", (1, top), xycoords=("axes fraction", "data"), ha="right",
                    va="center", fontsize=8.5, color=MUTED)
    ax.margins(x=0.1)
    ax.set_ylim(top=top + 0.04 * (top - best))
    dress(ax, x=label_x)
