"""Every input that fuzzing kept is parsed or refused, for ever."""

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_is_parsed_or_refused(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            PARSERS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {error!r}") from error


def test_every_corpus_has_a_parser() -> None:
    assert {p.name for p in Path(CORPUS).iterdir()} == set(PARSERS)
