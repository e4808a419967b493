"""README stays short and plain, and its table is that of the committed results."""

import re
from pathlib import Path

from bench.headline import markdown

TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def sentences() -> list[list[str]]:
    """Words of every sentence of the prose: no code, tables, headings or links' targets."""
    prose = re.sub(r"```.*?```|^[#|!].*?$", "", TEXT, flags=re.S | re.M)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    parts = re.split(r"(?<=[.!?:])\s|\n\n|\n(?=- )", prose)
    return [words for part in parts if (words := re.findall(r"\w[\w'.,=:-]*", part))]


def test_readme_fits_120_lines_and_900_words() -> None:
    assert len(TEXT.splitlines()) <= 120
    assert len(TEXT.split()) <= 900


def test_sentences_are_short() -> None:
    lengths = [len(words) for words in sentences()]
    assert sum(lengths) / len(lengths) <= 18
    assert max(lengths) <= 35, max(sentences(), key=len)


def test_the_table_is_of_the_committed_results() -> None:
    assert markdown() in TEXT
