"""Figures by unit and by byte: the allocation, the sensitivities, where the memory goes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qra_bo.report.data import BREAKDOWN_KEYS, ReportData
from qra_bo.report.style import (
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    Theme,
    contrast,
    dress,
    figure,
    legend,
)
from qra_bo.report.text import MINUS, short_names, size

MB = 1e6
FEW_UNITS = 48
"""Units up to which every bar is named and carries its value."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
BREAKDOWN_TITLES = {
    "weights": "quantised weights", "quant_metadata": "scales and zeros", "unquantised": "embeddings, head, norms",
    "adapters": "adapters", "gradients": "gradients", "optimizer": "optimiser states", "activations": "activations",
    "workspace": "workspace"}


def allocation(d: ReportData, theme: Theme) -> Figure | None:
    """Bits and ranks of the winner by unit: bars by layer, or a map of layers and modules; ``None`` without one."""
    if d.winner is None:
        return None
    bits, ranks = np.array(d.bits(d.winner), float), np.array(d.winner.ranks, float)
    cells = _grid(d.header.units)
    many_rows = cells is not None and len(cells[0]) > 1
    fig = figure(theme, 8.0, 2 + 0.5 * len(cells[0]) * 2 if many_rows and cells else 4.6)
    above, below = fig.subplots(2, 1, sharex=True)
    for ax, values, ladder, title in ((above, bits, [f.bits for f in d.header.formats], "bits"),
                                      (below, ranks, list(d.header.ranks), "LoRA rank")):
        if many_rows and cells is not None:
            _map(ax, values, cells, theme, title, float(max(ladder)))
        else:
            _bars(ax, values, d.header.units, theme, title, theme.main if title == "bits" else ORANGE)
    below.set_xlabel("layer" if cells is not None else "unit", color=theme.ink)
    return fig


def _grid(units: Sequence[str]) -> tuple[list[str], list[str], dict[int, tuple[int, int]]] | None:
    """Rows (module names), columns (layers) and the cell of every unit; ``None`` if a name holds no layer number."""
    parts = []
    for name in units:
        path = name.split(".")
        at = next((i for i, p in enumerate(path) if p.isdigit()), None)
        if at is None:
            return None
        parts.append((".".join(path[at + 1:]), path[at]))
    rows, columns = list(dict.fromkeys(r for r, _ in parts)), list(dict.fromkeys(c for _, c in parts))
    return rows, columns, {i: (rows.index(r), columns.index(c)) for i, (r, c) in enumerate(parts)}


def _bars(ax: Axes, values: npt.NDArray[np.float64], units: Sequence[str], theme: Theme, title: str,
          colour: str) -> None:
    names = short_names(units)
    x = np.arange(len(values))
    ax.bar(x, values, color=colour, width=0.78)
    dress(ax, theme, y=title)
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.18 * max(values.max(), 1.0))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if len(values) <= FEW_UNITS:
        ax.set_xticks(x, names, rotation=90 if max(map(len, names)) > 3 else 0)
        for i, v in enumerate(values):
            ax.annotate(f"{v:.0f}", (i, v), textcoords="offset points", xytext=(0, 2), ha="center", fontsize=8,
                        color=theme.ink)


def _map(ax: Axes, values: npt.NDArray[np.float64], cells: tuple[list[str], list[str], dict[int, tuple[int, int]]],
         theme: Theme, title: str, top: float) -> None:
    rows, columns, where = cells
    image = np.full((len(rows), len(columns)), np.nan)
    for unit, (r, c) in where.items():
        image[r, c] = values[unit]
    ax.imshow(image, cmap=theme.cmap, vmin=0, vmax=top, aspect="auto")
    dress(ax, theme, title=title)
    ax.grid(False)
    ax.set_yticks(range(len(rows)), rows)
    step = max(1, len(columns) // 32 + (len(columns) > 32))
    ax.set_xticks(range(0, len(columns), step), columns[::step])
    if len(columns) <= FEW_UNITS:
        for (r, c), v in np.ndenumerate(image):
            if np.isfinite(v):
                ax.text(c, r, f"{v:.0f}", ha="center", va="center", fontsize=7, color=contrast(theme, v / top))


def sensitivity(d: ReportData, theme: Theme) -> Figure | None:
    """Damage of quantising each unit alone, by format, and what adapter capacity may gain there."""
    p = d.profile
    if p is None:
        return None
    fig = figure(theme, 8.0, 5.4 if p.rank_sensitivity is not None else 3.8)
    axes = fig.subplots(2 if p.rank_sensitivity is not None else 1, 1, sharex=True, squeeze=False)[:, 0]
    x = np.arange(len(p.units))
    colours = (VERMILLION, ORANGE, theme.main, GREEN, PURPLE, SKY, YELLOW)
    for j, name in enumerate(p.formats):
        axes[0].plot(x, p.quantization_sensitivity[:, j], marker=MARKERS[j % len(MARKERS)], markersize=5, linewidth=1.3,
                     color=colours[j % len(colours)], label=name)
    _symlog(axes[0], p.quantization_sensitivity)
    dress(axes[0], theme, y="loss increase (nats)", title="Damage when only this unit is quantised ($I_q$)")
    legend(fig, axes[0], theme, columns=8)
    if p.rank_sensitivity is not None:
        axes[1].bar(x, p.rank_sensitivity[:, -1], color=theme.main, width=0.78)
        dress(axes[1], theme, y="gain (first order)", title=f"Gain of adapter capacity, rank {p.rank_sensitivity.shape[1]} ($I_r$)")
        axes[1].grid(False, axis="x")
    if len(x) <= FEW_UNITS:
        names = short_names(p.units)
        axes[-1].set_xticks(x, names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes[-1].set_xlabel("unit", color=theme.ink)
    return fig


def _symlog(ax: Axes, values: npt.NDArray[np.float64]) -> None:
    """An axis that is logarithmic away from 0, with plain numbers at powers of ten that do not crowd around 0."""
    sizes = np.abs(values[values != 0])
    least = int(np.ceil(np.log10(max(np.quantile(sizes, 0.1), 1e-5)))) if sizes.size else -3
    most = max(least, int(np.floor(np.log10(sizes.max())))) if sizes.size else least
    ax.set_yscale("symlog", linthresh=10.0 ** least, linscale=0.6)
    ticks = [10.0 ** k for k in range(least, most + 1)]
    low, high = float(values.min()), float(values.max())
    shown = [t for t in (*(-t for t in reversed(ticks)), 0.0, *ticks) if low <= t <= high or t == 0.0]
    ax.set_yticks(shown, [f"{t:g}".replace("-", MINUS) for t in shown])
    ax.minorticks_off()


def memory(d: ReportData, theme: Theme) -> Figure | None:
    """Waterfall of the winner's predicted bytes against measured bytes and budget; ``None`` without a breakdown."""
    if d.winner is None or d.breakdown is None:
        return None
    m = d.measurement(d.winner)
    parts = [(k, d.breakdown[k]) for k in BREAKDOWN_KEYS if d.breakdown.get(k, 0) > 0]
    labels = [BREAKDOWN_TITLES[k] for k, _ in parts] + ["predicted"]
    widths = [v / MB for _, v in parts]
    starts = [*np.cumsum([0.0, *widths])[:-1].tolist(), 0.0]
    widths.append(sum(widths))
    colours = [theme.main] * len(parts) + [GREEN]
    if m is not None and m.measured_bytes is not None:
        labels.append("measured")
        widths.append(m.measured_bytes / MB)
        starts.append(0.0)
        colours.append(VERMILLION)
    fig = figure(theme, 8.0, 0.8 + 0.36 * len(labels))
    ax = fig.add_subplot()
    y = np.arange(len(labels))[::-1]
    ax.barh(y, widths, left=starts, color=colours, height=0.7)
    limit = d.header.budget_bytes / MB
    right = 1.14 * max(limit, *widths)
    for yi, start, width in zip(y, starts, widths, strict=True):
        ax.annotate(size(width * MB), (start + width, yi), textcoords="offset points", xytext=(5, 0), va="center",
                    fontsize=8.5, color=theme.ink, bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.2})
    ax.axvline(limit, color=theme.ink, linestyle="--", linewidth=1.2)
    ax.annotate(f"budget {size(d.header.budget_bytes)}", (limit, y[0] + 0.4), textcoords="offset points",
                xytext=(-5, 0), ha="right", va="top", fontsize=8.5, color=theme.ink)
    ax.set_yticks(y, labels)
    ax.set_xlim(0, right)
    dress(ax, theme, f"{d.header.scope} memory (MB)")
    ax.grid(False, axis="y")
    return fig
