"""README stays short and plain, and its table is that of the committed results."""

from pathlib import Path

from bench.headline import markdown
from tests.docs.prose import sentences, too_long

TEXT = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_readme_fits_120_lines_and_900_words() -> None:
    assert len(TEXT.splitlines()) <= 120
    assert len(TEXT.split()) <= 900


def test_sentences_are_short() -> None:
    assert too_long(sentences(TEXT)) == []


def test_the_table_is_of_the_committed_results() -> None:
    assert markdown() in TEXT
