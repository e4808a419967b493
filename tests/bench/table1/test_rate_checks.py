"""What rests on calibrated learning rates, checked at other ones."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.sessions import table_session
from bench.table1.cells import OWN, Cell, CellResult, make_cells
from bench.table1.config import load_options
from bench.table1.limits import parse_limit
from bench.table1.load import load_table
from bench.table1.markdown import render
from bench.table1.methods import ROWS
from bench.table1.rate_checks import check_rates, check_references, pairs, references
from bench.table1.rates import Rate
from bench.table1.recipe import Recipe
from bench.table1.results import build
from bench.table1.rows import Found
from bench.table1.session import Session
from qra_bo.config import load_config
from qra_bo.space import uniform
from qra_bo.study.setting import training_seeds
from qra_bo.utils.errors import ConfigError

DRY = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "quantizer.rounding=rtn"]
CHECKS = ["table1.rate_factors=[0.5,2]", "table1.seeds=3"]
LIMIT = "peak uniform:4,4"


@pytest.fixture(name="session")
def make_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    with table_session(load_config(DRY), tmp_path / "t", load_options(CHECKS)) as session:
        yield session


def result(session: Session, method: str, fmt: str, rank: int, lr_scale: float) -> CellResult:
    recipe = Recipe(uniform(session.space.n_units, fmt, rank), "kaiming")
    return CellResult(Cell(ROWS[method], parse_limit(LIMIT)), found=Found(recipe, 0.0),
                      rate=Rate(lr_scale, ((lr_scale, 3.0),), True))


def test_ours_meets_the_uniform_choice_that_has_its_bits_and_codes() -> None:
    limits = ["peak uniform:4,4", "stored uniform:4,16 for qra_bo,qra_bo_gptq,best_uniform,best_uniform_gptq", "free",
              "peak uniform:4,16 for qra_bo_gptq,best_uniform"]
    found = [(own.limit.name, own.row.name, row.row.name) for own, row in pairs(make_cells(limits, None))]
    assert found == [("peak uniform:4,4", "qra_bo_finer_gptq", "best_uniform_finer_gptq"),
                     ("stored uniform:4,16", "qra_bo_gptq", "best_uniform_gptq")]


def test_both_sides_are_trained_at_each_factor_on_their_own_rate(session: Session) -> None:
    results = [result(session, "best_uniform", "nf4", 4, 1.0), result(session, "qra_bo", "int8", 1, 1.5)]
    said: list[str] = []
    checks = check_rates(session, results, said.append)
    seeds = training_seeds(session.config.seed, 3)[1]
    for check, factor in zip(checks, (0.5, 2.0), strict=True):
        sides = [[session.evaluate(r.found.recipe, scale * factor, seed, "test")["loss"] for seed in seeds]
                 for r, scale in zip(results, (1.0, 1.5), strict=True) if r.found]
        assert [check["row_losses"], check["qra_bo_losses"]] == sides
        assert (check["factor"], check["train_seeds"]) == (factor, list(seeds))
        mean = sum(own - row for row, own in zip(*sides, strict=True)) / 3
        assert check["qra_bo_minus_row"]["mean"] == pytest.approx(mean)
        assert check["qra_bo_minus_row"]["train_seeds"] == 3
    assert len(said) == 2
    assert said[0].startswith(f"{LIMIT}: at 0.5 times the rate qra_bo")
    assert check_rates(session, results, said.append) == checks
    assert len(said) == 2
    made: Any = build(session, [r.cell for r in results], results, checks)
    lines = render(made).partition("## At other learning rates")[2].splitlines()
    factors = [line.split(" | ")[3].strip() for line in lines if line.startswith(f"| {LIMIT}")]
    assert factors == ["0.5", "2"]
    assert "At other" not in render(build(session, [r.cell for r in results], results))


def test_one_configuration_or_none_leaves_nothing_to_check(session: Session) -> None:
    same = [result(session, "best_uniform", "nf4", 4, 1.0), result(session, "qra_bo", "nf4", 4, 1.0)]
    assert check_rates(session, same, print) == []
    none = [result(session, "best_uniform", "nf4", 4, 1.0), CellResult(Cell(ROWS["qra_bo"], parse_limit(LIMIT)))]
    assert check_rates(session, none, print) == []


def test_references_are_compared_with_themselves_at_their_own_rates(session: Session) -> None:
    space, seeds = session.space, training_seeds(session.config.seed, 3)[1]
    own = CellResult(Cell(ROWS["qlora"], OWN), found=Found(Recipe(uniform(space.n_units, "nf4", 16), "kaiming"), 0.0),
                     rate=Rate(1.5, ((1.5, 3.0),), True))
    assert own.found
    own.trials = {seed: session.evaluate(own.found.recipe, 1.5, seed, "test") for seed in seeds}
    elsewhere = result(session, "qlora_gptq", "nf4", 16, 1.0)
    said: list[str] = []
    checks = check_references(session, [elsewhere, own, CellResult(Cell(ROWS["lora_16"], OWN))], said.append)
    assert [(c["row"], c["factor"], c["train_seeds"]) for c in checks] == \
        [("qlora", factor, list(seeds)) for factor in (0.5, 2.0)]
    for check in checks:
        there = [session.evaluate(own.found.recipe, 1.5 * check["factor"], s, "test")["loss"] for s in seeds]
        assert check["losses"] == there
        mean = sum(loss - own.losses[seed] for seed, loss in zip(seeds, there, strict=True)) / 3
        assert check["minus_own"]["mean"] == pytest.approx(mean)
    assert [line.split(" times its rate")[0] for line in said] == ["QLoRA, 4-bit: at 0.5", "QLoRA, 4-bit: at 2"]
    shown = render(build(session, [own.cell], [own], (), checks)).partition("## At other learning rates")[2]
    lines = shown.splitlines()
    assert [line.split(" | ")[1].strip() for line in lines if line.startswith("| qlora")] == ["0.5", "2"]


def test_references_are_those_in_their_own_memory() -> None:
    cells = make_cells((LIMIT,), ("lora_16", "qlora", "qlora_gptq", "uniform_8", "qra_bo"))
    assert [(c.row.name, c.limit) for c in references(cells)] == [("lora_16", OWN), ("qlora", OWN)]


@pytest.mark.parametrize("factors", ["[1]", "[0.5,0.5]", "[-2]"])
def test_factors_are_distinct_and_not_the_rate_itself(factors: str) -> None:
    with pytest.raises(ConfigError, match="distinct positive factors other than 1"):
        load_table([*DRY, f"table1.rate_factors={factors}"])
