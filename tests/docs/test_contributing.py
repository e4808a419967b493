"""What CONTRIBUTING.md names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "name"), sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)", TEXT))))
def test_named_function_exists(path: str, name: str) -> None:
    assert re.search(rf"^(class|def) {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


PATHS = sorted(set(re.findall(r"`((?:qra_bo|surrogates|bench|tests|conf|docs)/[\w/.]*)", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_named_path_exists(path: str) -> None:
    assert (ROOT / path).exists() or "NAME" in path


def test_path_of_a_search_has_at_most_twelve_steps() -> None:
    section = TEXT.split("## The path of one search")[1].split("\n## ")[0]
    assert 1 <= len(re.findall(r"^\d+\. ", section, re.MULTILINE)) <= 12
