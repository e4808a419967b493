"""Check that README and pages are short and plain; ``make lint`` runs it: ``python docs/prose.py``."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEAN, LONGEST = 18, 35
"""Words of a sentence: most in the mean of a page, and most of all."""
LINES, README_LINES, README_WORDS = 200, 120, 900
"""Most lines of a page of results; most lines and words of the README."""


def sentences(text: str) -> list[list[str]]:
    """Return the words of every sentence: no code, generated tables, headings, comments or targets of links."""
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.S)
    prose = re.sub(r"```.*?```|<!--.*?-->|^(?:[#|!]|:::).*?$", "", text, flags=re.S | re.M)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    parts = re.split(r"(?<=[.!?:])[*\])]*\s|\n\n|\n(?=\s*- )", prose)
    return [words for part in parts if (words := re.findall(r"\w[\w'.,=:-]*", part))]


def problems(page: Path) -> Iterator[str]:
    """Yield what is too long on a page."""
    text = page.read_text(encoding="utf-8")
    found, lines = sentences(text), len(text.splitlines())
    yield from (f"{len(words)} words: {' '.join(words)}" for words in found if len(words) > LONGEST)
    mean = sum(map(len, found)) / max(1, len(found))
    if mean > MEAN:
        yield f"{mean:.1f} words a sentence in the mean, more than {MEAN}"
    most = README_LINES if page.name == "README.md" else LINES if page.parent.name == "results" else lines
    if lines > most:
        yield f"{lines} lines, more than {most}"
    if page.name == "README.md" and len(text.split()) > README_WORDS:
        yield f"{len(text.split())} words, more than {README_WORDS}"


if __name__ == "__main__":
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    said = [f"{page.relative_to(ROOT)}: {problem}" for page in pages for problem in problems(page)]
    sys.exit("\n".join(said) or None)
