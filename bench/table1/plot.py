"""``table1.png``: test loss against peak and stored memory, with the Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.table1.results import proxy_label
from qra_bo.report.style import (
    BLUE,
    GREEN,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Theme,
    dress,
    figure,
    legend,
)

MARKS = {"qra_bo_finer_gptq": ("p", VERMILLION), "best_uniform_finer_gptq": ("p", BLUE),
         "qra_bo_gptq": ("*", VERMILLION), "qra_bo": ("P", VERMILLION), "best_uniform_gptq": ("s", BLUE),
         "best_uniform": ("v", BLUE), "autoqra": ("P", GREEN), "autoqra_gptq": ("*", GREEN),
         "qr_adaptor": ("X", SKY), "qlora": ("D", "#000000"), "qlora_gptq": ("h", "#000000"), "lora_16": ("D", PURPLE)}
OTHERS = ("o", ORANGE)
HEADROOM = 0.6
"""Share of the span from the best loss to QLoRA's that is shown above QLoRA's; higher losses are marked at the edge."""
Row = Mapping[str, Any]


def draw(table: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Draw two panels, peak and stored memory; ``None`` if no row has a loss."""
    rows = [r for r in table["rows"] if r["mean"] is not None]
    if not rows:
        return None
    fig = figure(theme, 11.0, 4.6)
    left, right = fig.subplots(1, 2, sharey=True)
    _panel(left, theme, rows, "peak_bytes", "Peak memory of training (MB)")
    _panel(right, theme, rows, "stored_bytes", "Stored weights and adapters (MB)")
    left.set_ylabel("Test loss (nats per token)", color=theme.ink)
    label = proxy_label(table)
    if label is not None:
        fig.suptitle(label, color=theme.ink)
    legend(fig, left, theme, 3)
    return fig


def front(rows: Sequence[Row], key: str) -> list[Row]:
    """Return the Pareto front of memory and loss, by increasing memory."""
    found: list[Row] = []
    for r in sorted(rows, key=lambda r: (r[key], r["mean"])):
        if not found or r["mean"] < found[-1]["mean"]:
            found.append(r)
    return found


def _panel(ax: Axes, theme: Theme, rows: Sequence[Row], key: str, label: str) -> None:
    best = min(r["mean"] for r in rows)
    qlora = next((r["mean"] for r in rows if r["method"] == "qlora"), max(r["mean"] for r in rows))
    top = qlora + HEADROOM * max(qlora - best, 1e-6)
    seen: set[str] = set()
    for r in rows:
        mark, colour = MARKS.get(r["method"], OTHERS)
        name = r["title"] if r["method"] in MARKS else "other methods"
        above = r["mean"] > top
        ax.errorbar(r[key] / 1e6, min(r["mean"], top), yerr=None if above else r["se"], fmt="^" if above else mark,
                    color=colour, markersize=11 if mark == "*" else 6.5, linestyle="none", capsize=2, zorder=3,
                    label=None if above or name in seen else name)
        if not above:
            seen.add(name)
    line = front([r for r in rows if r["mean"] <= top], key)
    ax.step([r[key] / 1e6 for r in line], [r["mean"] for r in line], where="post", color=theme.muted, linewidth=1.0,
            zorder=1, label="front")
    ax.set_ylim(top=top + 0.04 * (top - best))
    dress(ax, theme, x=label)
