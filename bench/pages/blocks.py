"""Blocks of generated text within pages, and the cells that their tables are made of."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import RESULTS
from qra_bo.utils.formatting import DASH, MINUS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
Row = Mapping[str, Any]
Tables = Mapping[str, Callable[[], str]]


def refreshed(text: str, tables: Tables) -> str:
    """Return a page's text with every block made anew; raises ``KeyError`` for a table that does not exist."""
    return BLOCK.sub(lambda m: f"{m[1]}{tables[m[2]]().strip()}\n{m[3]}", text)


def read(name: str) -> Any:
    """Return a results file, ``NAME.json`` below ``bench/results``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def source(*names: str) -> str:
    """Return a line on the files that a table is made from: machine and commit of each."""
    parts = []
    for name in names:
        content = read(name)
        where = content.get("machine")
        facts = [f"{where['cpu']}, {where['cores']} core{'s' * (where['cores'] > 1)}"] if where else []
        commit = content.get("git") or content.get("provenance", {}).get("git")
        facts += [f"commit {commit[:7]}"] if commit else []
        parts.append(f"`bench/results/{name}.json` ({'; '.join(facts)})")
    return f"\n\n*From {' and '.join(parts)}.*"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent; an en dash for ``None``."""
    if value is None:
        return DASH
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def cell(value: Any) -> str:
    """Return a value of a results file as a cell's text."""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else figure(value)


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number with so many digits after the point; an en dash for ``None``."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign and so many digits after the point."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(value: float | None, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def between(mean: float, low: float, high: float, digits: int = 3) -> str:
    """Return a signed mean with the ends of its interval, bold where the interval excludes 0."""
    text = "{} ({} to {})".format(*(signed(v, digits) for v in (mean, low, high)))
    return f"**{text}**" if low > 0 or high < 0 else text


def targets(name: str) -> str:
    """Return a table of what a benchmark was to show and whether it did."""
    rows = [(t["what"], t["target"], f"not measured: {t['why']}" if t["value"] is None else figure(t["value"]),
             "met" if t["met"] else "**missed**") for t in read(name)["targets"]]
    return grid(("what", "target", "measured", ""), rows) + source(name)
