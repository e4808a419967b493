"""Figures of one search in the documentation, and the journal that they are drawn from."""

import re
from pathlib import Path

import pytest

from bench import headline, one_search
from bench.pages.blocks import DOCS
from qra_bo.utils.errors import DataError
from tests.report.fixtures import make_events, write_run


def test_every_figure_of_the_pages_is_drawn_by_a_command() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"figures/(\w+)\.png", page.read_text(encoding="utf-8"))}
    committed = {path.stem for path in (DOCS / "figures").glob("*.png")}
    assert shown == committed == {*one_search.FIGURES, headline.FIGURE.stem}


def test_figures_are_drawn_from_the_committed_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_search, "FIGURE", tmp_path / "any.png")
    one_search.main()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(one_search.FIGURES)


def test_a_journal_without_a_winner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_search, "RUN", write_run(tmp_path, make_events()[:1]))
    with pytest.raises(DataError, match="nothing is there for pareto, allocation"):
        one_search.draw()
