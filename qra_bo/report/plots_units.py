"""Figures by unit and by byte: the allocation, the sensitivities, the memory."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qra_bo.report import style
from qra_bo.report.data import BREAKDOWN, ReportData
from qra_bo.report.style import axes, dress, figure, legend, literal
from qra_bo.report.text import short_names, size
from qra_bo.utils.formatting import MINUS

FEW_UNITS = 48
"""Most units that are named one by one, with their values."""


def allocation(d: ReportData) -> Figure | None:
    """Bits and ranks of the winner by unit; ``None`` without one."""
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
        colour, mark = style.look(j)
        above.plot(x, p.quantization_kl[:, j], marker=mark, markersize=5, linewidth=1.3, color=colour,
                   label=literal(name))
    _symlog(above, p.quantization_kl)
    dress(above, y="divergence (nats)", title="Quantisation: only this unit quantised")
    legend(fig, above)
    if rank is not None:
        below[0].bar(x, rank[:, -1], color=style.BLUE, width=0.78)
        dress(below[0], y="gain (first order)",
              title=f"Adapter capacity: rank {rank.shape[1]} in this unit")
        below[0].grid(False, axis="x")
    last = [above, *below][-1]
    _name_units(last, short_names(p.units))
    last.set_xlabel("unit", color=style.INK)
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


def memory(d: ReportData) -> Figure | None:
    """Waterfall of the winner's predicted bytes against measured bytes and budget; ``None`` before the end."""
    if d.winner is None or d.breakdown is None:
        return None
    parts = [(label, d.breakdown[key]) for key, label in BREAKDOWN.items() if d.breakdown.get(key, 0) > 0]
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
        ax.annotate(size(n), (1, y), xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(6, 0),
                    va="center", fontsize=8.5, color=style.INK)
    ax.axvline(limit / style.MB, color=style.INK, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)])
    dress(ax, f"{d.header.scope} memory (MB)", title=f"dashed: the budget, {size(limit)}")
    ax.grid(False, axis="y")
    return fig
