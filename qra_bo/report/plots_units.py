"""Figures by unit and by byte: the allocation, the sensitivities, the memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qra_bo.report import style
from qra_bo.report.data import BREAKDOWN, ReportData
from qra_bo.report.style import MB, Theme, axes, dress, figure, heatmap, legend, literal, name_units
from qra_bo.report.text import short_names, size
from qra_bo.utils.formatting import MINUS

SIZE_SHARE, NARROW_SHARE = 0.13, 0.3
"""Room that a size in words takes beside its bar, as a share of the longest bar; the second on a narrow screen."""


def allocation(d: ReportData, theme: Theme) -> Figure | None:
    """Bits and ranks of the winner by unit: bars by layer, or a map of layers and modules; ``None`` without one."""
    if d.winner is None:
        return None
    cells, h = _grid(d.header.units), d.header
    rows = list(dict.fromkeys(row for row, _ in cells))
    fig = figure(theme, 8.0, 2.0 + len(rows) if len(rows) > 1 else 4.6)
    above, below = fig.subplots(2, 1, sharex=True)
    for ax, values, top, title, colour in (
            (above, d.bits(d.winner), max(f.bits for f in h.formats), "bits", theme.main),
            (below, d.winner.ranks, max(h.ranks), "LoRA rank", style.ORANGE)):
        if len(rows) > 1:
            _map(ax, values, cells, theme, title, float(top))
        else:
            _bars(ax, values, h.units, theme, title, colour)
    below.set_xlabel("layer" if rows else "unit", color=theme.ink)
    return fig


def _grid(units: Sequence[str]) -> list[tuple[str, str]]:
    """(module, layer) of every unit; empty if a name holds no layer number."""
    cells = []
    for name in units:
        path = name.split(".")
        at = next((i for i, p in enumerate(path) if p.isdigit()), None)
        if at is None:
            return []
        cells.append((".".join(path[at + 1:]), path[at]))
    return cells


def _bars(ax: Axes, values: Sequence[int], units: Sequence[str], theme: Theme, title: str, colour: str) -> None:
    ax.bar(range(len(values)), values, color=colour, width=0.78)
    dress(ax, theme, y=title)
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.18 * max(*values, 1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    name_units(ax, short_names(units), theme)
    if len(values) <= style.FEW_UNITS:
        for i, v in enumerate(values):
            ax.annotate(f"{v}", (i, v), textcoords="offset points", xytext=(0, 2), ha="center", color=theme.ink,
                        fontsize=6 if theme.narrow and len(values) > style.CROWDED else 8)


def _map(ax: Axes, values: Sequence[int], cells: list[tuple[str, str]], theme: Theme, title: str, top: float) -> None:
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    image = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in zip(cells, values, strict=True):
        image[rows.index(row), columns.index(column)] = value
    heatmap(ax, theme, title, image, rows, top)
    most = style.CROWDED if theme.narrow else 32
    step = 1 + (len(columns) - 1) // most
    ax.set_xticks(range(0, len(columns), step), columns[::step])


def sensitivity(d: ReportData, theme: Theme) -> Figure | None:
    """Rise of the loss when each unit alone is quantised, by format, and the gain of adapter capacity there."""
    if d.profile is None:
        return None
    p, rank = d.profile.profile, d.profile.profile.rank_sensitivity
    fig = figure(theme, 8.0, 5.4 if rank is not None else 3.8)
    above, *below = fig.subplots(1 + (rank is not None), 1, sharex=True, squeeze=False)[:, 0]
    x = np.arange(len(p.units))
    colours = (style.VERMILLION, style.ORANGE, theme.main, style.GREEN, style.PURPLE, theme.second, style.YELLOW)
    for j, name in enumerate(p.formats):
        spread = None if p.quantization_se is None else 1.96 * p.quantization_se[:, j]
        above.errorbar(x, p.quantization_sensitivity[:, j], yerr=spread, marker=style.MARKERS[j % len(style.MARKERS)],
                       markersize=5, linewidth=1.3, elinewidth=0.8, color=colours[j % len(colours)],
                       label=literal(name))
    _symlog(above, p.quantization_sensitivity)
    dress(above, theme, y="loss increase (nats)", title="Quantisation: only this unit quantised ($I_q$)")
    legend(fig, above, theme, columns=8)
    if rank is not None:
        below[0].bar(x, rank[:, -1], color=theme.main, width=0.78)
        dress(below[0], theme, y="gain (first order)",
              title=f"Adapter capacity: rank {rank.shape[1]} in this unit ($I_r$)")
        below[0].grid(False, axis="x")
    last = [above, *below][-1]
    name_units(last, short_names(p.units), theme)
    last.set_xlabel("unit", color=theme.ink)
    return fig


def _symlog(ax: Axes, values: npt.NDArray[np.float64]) -> None:
    """Make an axis logarithmic away from 0, with plain numbers at powers of ten that do not crowd around 0."""
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
    """Waterfall of the winner's predicted bytes against measured bytes and budget; ``None`` before the end.

    A size stands behind its bar; where it would cover the line of the budget before it, or without room there on it.
    """
    if d.winner is None or d.breakdown is None:
        return None
    parts = [(label, d.breakdown[key]) for key, label in BREAKDOWN.items() if d.breakdown.get(key, 0) > 0]
    ends = np.cumsum([0, *(n for _, n in parts)])
    bars = [(label, start, n, theme.main) for (label, n), start in zip(parts, ends, strict=False)]
    bars.append(("predicted", 0, int(ends[-1]), style.GREEN))
    m = d.measurement(d.winner)
    if m is not None and m.measured_bytes is not None:
        bars.append(("measured", 0, m.measured_bytes, style.VERMILLION))
    fig, ax = axes(theme, 8.0, 0.8 + 0.36 * len(bars))
    limit = d.header.budget_bytes
    room = (NARROW_SHARE if theme.narrow else SIZE_SHARE) * max(limit, *(n for _, _, n, _ in bars))
    for y, (_, start, n, colour) in enumerate(reversed(bars)):
        ax.barh(y, n / MB, left=start / MB, color=colour, height=0.7)
        left = start + n < limit < start + n + room and max(start, n) > room
        at = start if left and start > room else start + n
        ax.annotate(size(n), (at / MB, y), textcoords="offset points", va="center", xytext=(-5 if left else 5, 0),
                    ha="right" if left else "left", fontsize=8.5, color=theme.ink,
                    bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.2})
    ax.axvline(limit / MB, color=theme.ink, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)])
    ax.set_xlim(0, (1.35 if theme.narrow else 1.14) * max(limit, *(n for _, _, n, _ in bars)) / MB)
    dress(ax, theme, f"{d.header.scope} memory (MB)", title=f"dashed: the budget, {size(limit)}")
    ax.grid(False, axis="y")
    return fig
