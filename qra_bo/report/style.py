"""How figures look: colours told apart by colour-blind readers (Okabe and Ito), and no global matplotlib state."""

import base64
import io
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
DPI = 150


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one appearance: text, secondary text, grid lines, background, the main series, the ramp's ends."""

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    main: str
    ramp: tuple[str, str]

    @property
    def cmap(self) -> LinearSegmentedColormap:
        """From few to many, of one hue and rising contrast."""
        return LinearSegmentedColormap.from_list("ramp", self.ramp)


LIGHT = Theme("light", "#1b1f24", "#59636e", "#d9dee3", "#ffffff", BLUE, ("#e3eef6", "#004a75"))
DARK = Theme("dark", "#e6edf3", "#9ba7b4", "#323a44", "#161b22", SKY, ("#22303c", "#8fd0f7"))


def figure(theme: Theme, width: float, height: float) -> Figure:
    """An empty figure (inches) of this appearance."""
    fig = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def dress(ax: Axes, theme: Theme, x: str = "", y: str = "", title: str = "") -> None:
    """Labels, ticks, spines and grid of one axes."""
    ax.set_facecolor(theme.paper)
    ax.set_xlabel(x, color=theme.ink)
    ax.set_ylabel(y, color=theme.ink)
    if title:
        ax.set_title(title, color=theme.ink, loc="left", fontsize=10.5)
    ax.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    ax.grid(True, color=theme.grid, linewidth=0.7)
    ax.set_axisbelow(True)


def legend(fig: Figure, ax: Axes, theme: Theme, columns: int = 4) -> None:
    """A legend of ``ax`` below the whole figure, in the theme's colours."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, facecolor=theme.paper,
               edgecolor=theme.grid, labelcolor=theme.ink)


def contrast(theme: Theme, share: float) -> str:
    """Colour of a text on the ramp at ``share`` in 0 .. 1."""
    red, green, blue, _ = theme.cmap(share)
    return "#101418" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


def png_bytes(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg_uri(fig: Figure) -> str:
    """The figure as a ``data:`` URI, the same for the same figure."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "qra_bo", "svg.fonttype": "path"}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
