"""Figures of one search in the documentation, from its committed journal.

    python -m bench.one_search            (writes FIGURES into docs/figures)
"""

from collections.abc import Mapping

from matplotlib.figure import Figure

from bench.headline import FIGURE
from bench.report import RESULTS
from qra_bo.report.data import load_run
from qra_bo.report.plots import PLOTS
from qra_bo.report.style import png_bytes
from qra_bo.utils.errors import DataError

RUN = RESULTS / "runs" / "one_search"
"""A search of an earlier comparison within 601.3 MB at the peak, bits 2 to 8, codes by GPTQ."""
FIGURES = ("pareto", "allocation", "sensitivity", "memory")
"""Figures of a report that pages show."""


def draw() -> Mapping[str, Figure]:
    """Return the figures by name; raises ``DataError`` where the journal lacks what one of them shows."""
    data = load_run(RUN)
    found = {name: PLOTS[name](data) for name in FIGURES}
    drawn = {name: figure for name, figure in found.items() if figure is not None}
    if lost := [name for name in FIGURES if name not in drawn]:
        raise DataError(f"the journal in {RUN} must hold what {', '.join(FIGURES)} show; nothing is there for "
                        f"{', '.join(lost)}: name another search as RUN")
    return drawn


def main() -> None:
    for name, figure in draw().items():
        FIGURE.with_name(f"{name}.png").write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
