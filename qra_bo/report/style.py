"""Appearance of figures: colours for colour-blind readers (Okabe and Ito), no global matplotlib state."""

import io
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, YELLOW = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
INK, MUTED, GRID, PAPER = "#1b1f24", "#59636e", "#d9dee3", "#ffffff"
"""Text and axes, secondary lines and numbers, grid lines, background."""
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper", BLUE: "main", SKY: "second"}
"""CSS variables that a page has these colours from, in light and dark; the others serve both."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
SERIES = (VERMILLION, ORANGE, BLUE, GREEN, PURPLE, SKY, YELLOW)
FONTS = ("DejaVu Sans", "Verdana", "sans-serif")
"""The font that text is placed by, and ones of about its width for screens without it."""
MB = 1e6
DPI = 150


def literal(name: str) -> str:
    """Return a name as a figure's text; matplotlib reads what stands between two dollar signs as a formula."""
    return name.replace("$", r"\$")


def figure(width: float, height: float) -> Figure:
    """Create an empty figure (inches)."""
    fig = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure (inches) with one empty axes."""
    fig = figure(width, height)
    return fig, fig.add_subplot()


def dress(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Set labels, ticks, spines and grid of one axes."""
    ax.set_facecolor(PAPER)
    ax.set_xlabel(literal(x), color=INK)
    ax.set_ylabel(literal(y), color=INK)
    if title:
        ax.set_title(literal(title), color=INK, loc="left", fontsize=10.5)
    ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    for axis in (ax.xaxis, ax.yaxis):
        numbers = axis.get_major_formatter()
        if isinstance(numbers, ScalarFormatter):
            numbers.set_useOffset(False)  # each tick has its whole number, and none is a difference to one in a corner
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def legend(fig: Figure, ax: Axes) -> None:
    """Add a legend of ``ax`` below the whole figure, in as many columns as fit."""
    handles, labels = ax.get_legend_handles_labels()
    for n in range(len(labels), 0, -1):
        box = fig.legend(handles, labels, loc="outside lower center", ncols=n, fontsize=8.5, facecolor=PAPER,
                         edgecolor=GRID, labelcolor=INK)
        if n == 1 or box.get_window_extent().width < fig.bbox.width:
            return
        box.remove()


def png_bytes(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.set_dpi(DPI)
    FigureCanvasAgg(fig).print_png(buffer, metadata={"Software": None})  # savefig would draw everything twice
    return buffer.getvalue()


def svg_element(fig: Figure, name: str) -> str:
    """Return a figure as an element of a page: identifiers begin with ``name``, colours are the page's variables."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": FONTS}):
        FigureCanvasSVG(fig).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, start, rest = buffer.getvalue().partition("<svg ")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", f'{start}aria-hidden="true" {rest}')
    return re.sub("|".join(VARIABLES), lambda m: f"var(--{VARIABLES[m[0]]})", svg)
