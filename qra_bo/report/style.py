"""Appearance of figures: colours for colour-blind readers (Okabe and Ito), no global matplotlib state."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
MB = 1e6
DPI = 150
FEW_UNITS = 48
"""Most units that are named one by one, with their values."""
NARROW = 4.0
"""Width (inches) of a figure for a narrow screen: its text is then read without zooming on a phone."""
CROWDED = 16
"""Units beyond which a narrow figure names only some."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one appearance (text, secondary text, grid lines, background, the main series and a second one beside
    it, the ramp's ends), and whether figures are for a narrow screen."""

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    main: str
    second: str
    ramp: tuple[str, str]
    narrow: bool = False

    @property
    def cmap(self) -> LinearSegmentedColormap:
        """From few to many, of one hue and rising contrast."""
        return LinearSegmentedColormap.from_list("ramp", self.ramp)


LIGHT = Theme("light", "#1b1f24", "#59636e", "#d9dee3", "#ffffff", BLUE, SKY, ("#e3eef6", "#004a75"))
DARK = Theme("dark", "#e6edf3", "#9ba7b4", "#323a44", "#161b22", SKY, BLUE, ("#22303c", "#8fd0f7"))

IN_THE_DARK = {c.lower(): c.lower() for c in (ORANGE, GREEN, VERMILLION, PURPLE, YELLOW)} | {
    getattr(LIGHT, role).lower(): getattr(DARK, role).lower()
    for role in ("ink", "muted", "grid", "paper", "main", "second")}
"""What each colour of a light figure is in the dark one; colours of a ramp are not among them."""


def literal(name: str) -> str:
    """Return a name as a figure's text; matplotlib reads what stands between two dollar signs as a formula."""
    return name.replace("$", r"\$")


def narrow(theme: Theme) -> Theme:
    """Return the same appearance for a narrow screen."""
    return replace(theme, narrow=True)


def figure(theme: Theme, width: float, height: float) -> Figure:
    """Create an empty figure (inches) of this appearance; a narrow one has at most the width ``NARROW``."""
    fig = Figure(figsize=(min(width, NARROW) if theme.narrow else width, height), facecolor=theme.paper,
                 layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def panels(theme: Theme, n: int, width: float, height: float,
           ratios: Sequence[float] = ()) -> tuple[Figure, list[Axes]]:
    """Create a figure (inches) with ``n`` panels beside one another, or on a narrow screen below one another.

    ``ratios`` are the widths of panels that stand beside one another; empty: equal.
    """
    fig = figure(theme, width, height * (n if theme.narrow else 1))
    rows, columns = (n, 1) if theme.narrow else (1, n)
    found = fig.subplots(rows, columns, squeeze=False, width_ratios=None if theme.narrow or not ratios else ratios)
    return fig, list(found.flat)


def axes(theme: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure (inches) with one empty axes."""
    fig = figure(theme, width, height)
    return fig, fig.add_subplot()


def dress(ax: Axes, theme: Theme, x: str = "", y: str = "", title: str = "") -> None:
    """Set labels, ticks, spines and grid of one axes; formulas stand in a title alone."""
    ax.set_facecolor(theme.paper)
    ax.set_xlabel(literal(x), color=theme.ink)
    ax.set_ylabel(literal(y), color=theme.ink)
    if title:
        ax.set_title(title, color=theme.ink, loc="left", fontsize=9 if theme.narrow else 10.5)
    ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    for axis in (ax.xaxis, ax.yaxis):
        numbers = axis.get_major_formatter()
        if isinstance(numbers, ScalarFormatter):
            numbers.set_useOffset(False)  # each tick has its whole number, and none is a difference to one in a corner
    ax.grid(True, color=theme.grid, linewidth=0.7)
    ax.set_axisbelow(True)


def legend(fig: Figure, ax: Axes, theme: Theme, columns: int = 4) -> None:
    """Add a legend of ``ax`` below the whole figure, in the theme's colours and as many of ``columns`` as fit."""
    handles, labels = ax.get_legend_handles_labels()
    for n in range(columns, 0, -1):
        box = fig.legend(handles, labels, loc="outside lower center", ncols=n, fontsize=8.5, facecolor=theme.paper,
                         edgecolor=theme.grid, labelcolor=theme.ink)
        if n == 1 or box.get_window_extent().width < fig.bbox.width:
            return
        box.remove()


def name_units(ax: Axes, names: Sequence[str], theme: Theme) -> None:
    """Name every unit on the horizontal axis where there are few; some of them on a crowded narrow one."""
    if len(names) <= FEW_UNITS:
        step = 1 + (len(names) - 1) // CROWDED if theme.narrow else 1
        ax.set_xticks(range(0, len(names), step), [literal(name) for name in names[::step]],
                      rotation=90 if max(map(len, names)) > 3 else 0)


def heatmap(ax: Axes, theme: Theme, title: str, image: npt.NDArray[np.float64], rows: Sequence[str],
            top: float) -> None:
    """Draw ``image`` (``len(rows) x n``, values up to ``top``), with its numbers where there are few columns."""
    ax.imshow(image, cmap=theme.cmap, vmin=0, vmax=top, aspect="auto")
    dress(ax, theme, title=title)
    ax.grid(False)
    ax.set_yticks(range(len(rows)), [literal(row) for row in rows])
    if image.shape[1] <= FEW_UNITS:
        for (r, c), v in np.ndenumerate(image):
            if np.isfinite(v):
                red, green, blue, _ = theme.cmap(v / top)
                light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
                ax.text(c, r, f"{v:.0f}", ha="center", va="center", fontsize=7, color="#101418" if light else "#ffffff")


def png_bytes(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.set_dpi(DPI)
    FigureCanvasAgg(fig).print_png(buffer, metadata={"Software": None})  # savefig would draw everything twice
    return buffer.getvalue()
