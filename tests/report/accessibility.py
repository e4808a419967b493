"""axe-core, the usual checker of accessibility, in a page that is open in a real browser."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from tests.report.browser import Tab

PACKAGES = ("axe_playwright_python", "axe_core_python")
"""Packages that hold axe-core's one file, the one with the newer release of it first; nothing else of them is used."""
WITHOUT = "no axe-core is installed (pip install axe-core-python)"
GRAVE = ("serious", "critical")
UNROLL = """document.querySelectorAll("details").forEach(d => { d.open = true; });
for (const e of document.querySelectorAll(".scroll")) { e.style.overflow = "visible"; e.style.background = "none"; }"""
"""Shows everything at once: what scrolls out of sight or lies over a shadow has colours that can't be told."""


def find_axe() -> Path | None:
    """Path of an installed ``axe.min.js``, or ``None``."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).with_name("axe.min.js")
    return None


def violations(page: Tab, axe: Path) -> list[dict[str, Any]]:
    """What axe-core finds on the open page: ``id``, ``impact`` and the elements of every violated rule."""
    page.evaluate(axe.read_text(encoding="utf-8") + "; undefined")
    kept = "r.violations.map(v => ({id: v.id, impact: v.impact, where: v.nodes.map(n => n.target.join(' '))}))"
    found: list[dict[str, Any]] = json.loads(page.evaluate(
        f"axe.run(document, {{resultTypes: ['violations']}}).then(r => JSON.stringify({kept}))"))
    return found
