"""Sentences of a page's prose, and how long they may be."""

import re
from collections.abc import Sequence

MEAN, LONGEST = 18, 35
"""Words of a sentence: most in the mean of a page, and most of all."""


def sentences(text: str) -> list[list[str]]:
    """Return the words of every sentence: no code, tables, headings, comments or targets of links."""
    prose = re.sub(r"```.*?```|<!--.*?-->|^(?:[#|!]|:::).*?$", "", text, flags=re.S | re.M)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    parts = re.split(r"(?<=[.!?:])[*\])]*\s|\n\n|\n(?=\s*- )", prose)
    return [words for part in parts if (words := re.findall(r"\w[\w'.,=:-]*", part))]


def too_long(found: Sequence[Sequence[str]]) -> list[str]:
    """Return what is wrong with the lengths of sentences, in words."""
    wrong = [f"{len(words)} words: {' '.join(words)}" for words in found if len(words) > LONGEST]
    mean = sum(map(len, found)) / len(found) if found else 0.0
    return [*wrong, *([f"{mean:.1f} words in the mean"] if mean > MEAN else [])]
