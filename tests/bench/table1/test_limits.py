"""Limits as they are written, and what is said of those that can't be read."""

import pytest

from bench.table1.cells import OWN, make_cells
from bench.table1.limits import Limit, parse_limit, parse_limits
from bench.table1.methods import ROWS
from qra_bo.utils.errors import BudgetError, ConfigError


def test_limits_are_read() -> None:
    assert parse_limit("peak uniform:4,16 <=4") == Limit("peak uniform:4,16 <=4", "peak", "uniform:4,16", 4.0, None)
    assert parse_limit("  stored   10GB ") == Limit("stored 10GB", "stored", "10GB", None, None)
    assert parse_limit("peak 512MB <=3.5 for qra_bo,loftq") == Limit("peak 512MB <=3.5", "peak", "512MB", 3.5,
                                                                   ("qra_bo", "loftq"))
    assert parse_limit("free for qra_bo") == Limit("free", "peak", None, None, ("qra_bo",))


@pytest.mark.parametrize("text", ["", "peak", "host 10GB", "peak 10GB <4", "peak 10GB <=x", "free 10GB",
                                  "peak 10GB for", "peak auto"])
def test_what_is_no_limit_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a limit: a limit is 'peak BUDGET'|may be resumed on another"):
        parse_limit(text)


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(BudgetError, match="'ten' is not a size"):
        parse_limit("peak ten")
    with pytest.raises(ConfigError, match="names 'free' twice"):
        parse_limits(["free", "peak 1GB", "free for qra_bo"])


def test_cells_stand_in_the_order_of_the_table() -> None:
    cells = make_cells(["peak 1GB for qra_bo,loftq", "free"], None)
    assert [(c.row.name, c.limit.name) for c in cells] == [
        *((name, OWN.name) for name in ("lora_16", "qlora", "qlora_published", "qlora_gptq", "uniform_2", "uniform_3",
                                        "uniform_8")),
        ("loftq", "peak 1GB"), ("qra_bo", "peak 1GB"), ("autoqra", "free"), ("autoqra_gptq", "free"),
        ("qra_bo", "free"), ("qra_bo_gptq", "free")]
    everything = make_cells(["peak 1GB"], None)
    assert {c.row.name for c in everything} == set(ROWS)
    with pytest.raises(ConfigError, match="unknown method of the table 'qra_b'; known: qra_bo"):
        make_cells(["peak 1GB"], ["qra_b"])
    with pytest.raises(ConfigError) as caught:
        make_cells(["free for qra_bo,best_uniform", "peak 1GB for lora_16,qra_bo"], None)
    assert "best_uniform can't be compared within 'free': it needs a budget" in str(caught.value)
    assert "lora_16 can't be compared within 'peak 1GB': its memory is fixed" in str(caught.value)
    with pytest.raises(ConfigError, match="leave no row"):
        make_cells(["free"], ["loftq"])
