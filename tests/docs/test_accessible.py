"""The built documentation in a real browser: axe-core finds nothing serious on any page, in light, dark or narrow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.accessibility import GRAVE, WITHOUT, find_axe, violations
from tests.report.browser import find_browser, tab

BROWSER, AXE = find_browser(), find_axe()
ROOT = Path(__file__).resolve().parents[2]
SETTLED = """new Promise(done => { const look = () => document.documentElement.dataset.reachable ?
requestAnimationFrame(() => done(true)) : setTimeout(look, 20); look();
setTimeout(() => done(false), 60000); })"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed (apt-get install chromium)"),
    pytest.mark.skipif(AXE is None, reason=WITHOUT),
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra 'docs' is not installed"),
]


@pytest.fixture(scope="module", name="site")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)], cwd=ROOT,
                   check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return site


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_no_page_has_a_serious_finding(site: Path, tmp_path: Path, width: int, dark: bool) -> None:
    assert AXE is not None
    pages = sorted(p for p in site.rglob("*.html") if p.name != "404.html")  # whose paths hold on a server alone
    assert len(pages) > 20
    found = {}
    with tab(str(BROWSER), tmp_path) as page:  # a fresh one, for the theme remembers the appearance that it began with
        page.show(width, dark=dark)
        for path in pages:
            page.open(path)
            assert page.evaluate(SETTLED)
            assert page.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
            grave = [v for v in violations(page, AXE) if v["impact"] in GRAVE]
            if grave:
                found[str(path.relative_to(site))] = grave
    assert found == {}
