"""Which ladder of bits an oracle of the table has, and what a row's limit makes of a ladder of its own."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.table1 import session as module
from bench.table1.journal import TableJournal
from bench.table1.limits import parse_limit
from bench.table1.methods import ROWS
from bench.table1.recipe import Recipe
from bench.table1.session import Session, table_session
from qra_bo.config import load_config
from qra_bo.space import Allocation

FINER = (2, 3, 4, 5, 6, 8)
REAL = ["+model=tiny", "data=tiny", "display=none", "quantizer.rounding=rtn"]


@pytest.fixture(name="session")
def make_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    config = load_config(["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "quantizer.rounding=rtn"])
    with table_session(config, tmp_path / "t") as session:
        yield session


def test_a_ladder_is_widened_only_for_what_it_lacks(session: Session) -> None:
    assert session.ladder(()) == session.ladder((4, 8, 16)) == session.config.bits == (2, 3, 4, 8)
    assert session.ladder((5,)) == session.ladder(FINER) == FINER


def test_a_setting_has_the_formats_of_its_bits(session: Session) -> None:
    formats = session.setting_of(parse_limit("peak uniform:4,4"), ranks=(1, 4), bits=(4, 5, 6)).space.formats
    assert [f.name for f in formats] == ["nf4", "hqq5-g128", "hqq6-g128"]


def test_chosen_codes_come_from_an_oracle_that_chose_for_these_formats(session: Session,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle on another ladder would take the round-to-nearest codes and say nothing."""
    made: list[tuple[Any, ...]] = []

    def opened(config: Any, folder: Path) -> Any:
        made.append((config.bits, config.quantizer.rounding))
        return _Silent()

    monkeypatch.setattr(module, "make_executor", opened)
    monkeypatch.setattr(TableJournal, "describe", lambda self, described: None)
    for names, tokens in ((("nf4", "int8"), 8), (("nf4", "fp16"), 8), (("nf4", "hqq5-g128"), 8), (("nf4", "int8"), 8),
                          (("hqq6-g128", "int8"), None)):
        session.call("measure", {}, recipe=Recipe(Allocation(names, (1, 1)), "kaiming", gptq_tokens=tokens))
    assert made == [((2, 3, 4, 8), "gptq"), (FINER, "gptq"), ((2, 3, 4, 8), "rtn")]


def test_another_embedding_needs_another_oracle(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, str]] = []

    def opened(config: Any, folder: Path) -> Any:
        made.append((config.embeddings, folder.name))
        return _Silent()

    monkeypatch.setattr(module, "make_executor", opened)
    monkeypatch.setattr(TableJournal, "describe", lambda self, described: None)
    own = Recipe(Allocation(("nf4",) * 4, (1,) * 4), "kaiming")
    other = replace(own, embeddings=8)
    for recipe in (own, own, other, other, own):
        session.call("measure", {}, recipe=recipe)
    assert made == [(16, "kaiming"), (8, "kaiming-embeddings8"), (16, "kaiming")]
    assert own.key != other.key
    assert Recipe.from_json(other.to_json()) == other


@pytest.mark.parametrize("name", ["best_uniform_finer_gptq", "qra_bo_finer_gptq"])
def test_rows_on_the_finer_ladder_stand_where_a_budget_binds(name: str) -> None:
    row = ROWS[name]
    assert row.takes(parse_limit("stored uniform:4,16"))
    assert not any(row.takes(limit) for limit in (None, parse_limit("free"), parse_limit("peak uniform:4,16 <=4")))


@pytest.mark.parametrize("initial_rank", [None, 12])
def test_a_measurement_without_memory_is_made_again_in_another_session(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial_rank: int | None,
        capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"measured_bytes": None, "state": "oom", "message": "no memory is left"},
               {"measured_bytes": 77, "state": "ok", "message": ""}]
    monkeypatch.setattr(Session, "call", lambda self, *_: answers.pop(0))
    monkeypatch.setattr(os, "fsync", lambda fd: None)
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


def test_a_measurement_that_diverged_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"measured_bytes": None, "state": "diverged", "message": "loss nan"}]
    monkeypatch.setattr(Session, "call", lambda self, *_: answers.pop(0))
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    recipe = Recipe(Allocation(("nf4", "nf4"), (4, 4)), "kaiming", 12)
    for _ in range(2):
        with table_session(load_config(REAL), tmp_path / "t") as session:
            assert session.measured_bytes(recipe, 1.0, 1, "peak") is None


class _Silent:
    def call(self, *_: Any) -> dict[str, Any]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing was opened."""
