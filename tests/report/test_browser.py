"""The pages in a real headless browser: nothing logged, nothing fetched, everything there, usable by keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qra_bo.report.data import parse_events
from qra_bo.report.html import drawn, render_html, render_runs
from qra_bo.report.plots import PLOTS
from qra_bo.report.side_by_side import NamedRun
from tests.report.accessibility import UNROLL, WITHOUT, find_axe, violations
from tests.report.browser import Tab, find_browser, tab
from tests.report.fixtures import make_events

BROWSER, AXE = find_browser(), find_axe()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed (apt-get install chromium)")
SHOWN = "[...document.querySelectorAll('figure [role=img]')].map(f => [...f.children].filter(" \
        "s => s.getBoundingClientRect().width > 100 && s.getBoundingClientRect().height > 50).length)"
"""How many drawings are seen of each figure."""
PAPER = "getComputedStyle(document.querySelector('figure svg path')).fill"
"""Colour behind a figure."""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module", name="page")
def make_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(str(BROWSER), tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module", name="report")
def make_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    d = parse_events(make_events())
    path.write_text(render_html(d, drawn(d)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", name="several")
def make_several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [NamedRun(f"seed-{seed}", parse_events(make_events(seed))) for seed in (0, 1)]
    path = tmp_path_factory.mktemp("several") / "report.html"
    path.write_text(render_runs([*runs, NamedRun("<b>", parse_events(make_events(2, finished=False)))]))
    return path


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_report_opens_offline_without_errors_and_fits_screen(page: Tab, report: Path, width: int,
                                                                      dark: bool) -> None:
    page.console.clear()
    page.requests.clear()
    page.show(width, dark=dark)
    page.open(report)
    assert page.evaluate(SHOWN) == [1] * len(PLOTS)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.console == []
    assert {r.split(":")[0] for r in page.requests} == {"file", "data"}
    assert sum(r.startswith("file:") for r in page.requests) == 1
    assert page.evaluate(PAPER) == ("rgb(22, 27, 34)" if dark else "rgb(255, 255, 255)")
    if width > 576:  # a phone scrolls a figure sideways
        beyond = "[...document.querySelectorAll('figure .scroll')].map(s => s.scrollWidth - s.clientWidth)"
        assert max(page.evaluate(beyond)) <= 0


def test_keyboard_sorts_table_with_losses_as_numbers(page: Tab, report: Path) -> None:
    page.show(1200)
    page.open(report)
    loss = page.evaluate("[...document.querySelectorAll('table.sortable th')].findIndex(h => h.innerText === 'loss')")
    page.evaluate(f"document.querySelectorAll('table.sortable th button')[{loss}].focus()")
    column = f"[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[{loss}].dataset.key)"
    for state, sign in (("ascending", 1), ("descending", -1)):
        page.press("Enter", 13)
        assert page.evaluate("document.activeElement.parentElement.getAttribute('aria-sort')") == state
        keys = page.evaluate(column)
        values = [sign * float(k) for k in keys if k]
        assert values == sorted(values)
        assert keys.count("") == keys[::-1].index(next(k for k in reversed(keys) if k))  # failures come last both ways


@pytest.mark.skipif(AXE is None, reason=WITHOUT)
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_axe_finds_no_violation_on_either_page(page: Tab, report: Path, several: Path, width: int,
                                                                  dark: bool) -> None:
    assert AXE is not None
    page.show(width, dark=dark)
    for path in (report, several):
        page.open(path)
        assert violations(page, AXE) == []
        page.evaluate(UNROLL)
        assert violations(page, AXE) == []
