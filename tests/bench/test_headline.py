"""Figures of the pages are committed, and only these."""

import re

from bench.headline import FIGURE, draw
from bench.pages.blocks import DOCS


def test_every_committed_figure_is_shown() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"figures/(\w+)\.png", page.read_text(encoding="utf-8"))}
    assert shown == {path.stem for path in FIGURE.parent.glob("*.png")}


def test_readmes_figure_has_a_place_for_every_limit() -> None:
    assert len(draw().axes[0].get_xticks()) == 4
