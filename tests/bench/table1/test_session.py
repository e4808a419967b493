"""Which ladder of bits an oracle of the table has, and what a row's limit makes of a ladder of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.table1 import session as module
from bench.table1.journal import TableJournal
from bench.table1.recipe import Recipe
from bench.table1.session import Session, table_session
from qra_bo.config import load_config
from qra_bo.space import Allocation

FINER = (2, 3, 4, 5, 6, 8)
REAL = ["+model=tiny", "data=tiny", "display=none", "quantizer.rounding=rtn"]


@pytest.fixture(name="session")
def make_session(tmp_path: Path) -> Iterator[Session]:
    config = load_config(["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "quantizer.rounding=rtn"])
    with table_session(config, tmp_path / "t") as session:
        yield session


@pytest.fixture(name="opened")
def record_oracles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path]]:
    """Configurations and folders of the oracles that were opened, which do nothing."""
    made: list[tuple[Any, Path]] = []
    monkeypatch.setattr(module, "make_executor", lambda *given: made.append(given) or _Silent())
    monkeypatch.setattr(TableJournal, "describe", lambda self, described: None)
    return made


def test_chosen_codes_come_from_an_oracle_that_chose_for_these_formats(session: Session,
                                                                       opened: list[tuple[Any, Path]]) -> None:
    """An oracle on another ladder would take the round-to-nearest codes and say nothing."""
    for names, tokens in ((("nf4", "int8"), 8), (("nf4", "fp16"), 8), (("nf4", "hqq5-g128"), 8), (("nf4", "int8"), 8),
                          (("hqq6-g128", "int8"), None)):
        session.call("measure", {}, recipe=Recipe(Allocation(names, (1, 1)), "kaiming", gptq_tokens=tokens))
    assert [(config.bits, config.quantizer.rounding) for config, _ in opened] == [
        ((2, 3, 4, 8), "gptq"), (FINER, "gptq"), ((2, 3, 4, 8), "rtn")]


def test_another_embedding_needs_another_oracle(session: Session, opened: list[tuple[Any, Path]]) -> None:
    own = Recipe(Allocation(("nf4",) * 4, (1,) * 4), "kaiming")
    other = replace(own, embeddings=8)
    for recipe in (own, own, other, other, own):
        session.call("measure", {}, recipe=recipe)
    assert [(config.embeddings, folder.name) for config, folder in opened] == [
        (16, "kaiming"), (8, "kaiming-embeddings8"), (16, "kaiming")]
    assert own.key != other.key
    assert Recipe.from_json(other.to_json()) == other


@pytest.mark.parametrize("initial_rank", [None, 12])
def test_a_measurement_without_memory_is_made_again_in_another_session(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial_rank: int | None,
        capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"measured_bytes": None, "state": "oom", "message": "no memory is left"},
               {"measured_bytes": 77, "state": "ok", "message": ""}]
    monkeypatch.setattr(Session, "call", lambda self, *_: answers.pop(0))
    config = load_config(REAL)
    recipe = Recipe(Allocation(("nf4", "nf4"), (4, 4)), "kaiming", initial_rank)
    with table_session(config, tmp_path / "t") as session:
        assert [session.measured_bytes(recipe, 1.0, 1, "peak") for _ in range(2)] == [None, None]
    assert capsys.readouterr().err.count("no memory is left") == 1
    with table_session(config, tmp_path / "t") as session:
        assert session.measured_bytes(recipe, 1.0, 1, "peak") == 77
    with table_session(config, tmp_path / "t") as session:
        assert session.measured_bytes(recipe, 1.0, 1, "peak") == 77
    assert not answers


class _Silent:
    def call(self, *_: Any) -> dict[str, Any]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing was opened."""
