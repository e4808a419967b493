"""The memory plan: what fits, on what, and what to change when it does not."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.budget import resolve_budget, smallest
from qra_bo.memory.plan import CARDS_GB, MemoryPlan, memory_plan, render
from qra_bo.space import Allocation, SearchSpace
from tests.memory.spaces import LLAMA2_7B, TINY, space_of

RANKS = (1, 2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def llama() -> tuple[MemoryModel, SearchSpace, MemoryPlan]:
    model, space = MemoryModel(LLAMA2_7B, TrainShape(4, 128)), space_of(LLAMA2_7B, ranks=RANKS)
    return model, space, memory_plan(model, space, 10 * 10**9, "10GB")


def test_rows_are_the_models_own_numbers(llama: tuple[MemoryModel, SearchSpace, MemoryPlan]) -> None:
    model, space, plan = llama
    assert [(r.fmt, r.rank) for r in plan.rows] == [(f.name, r) for f in space.formats for r in (1, 4, 16, 32)]
    for row in plan.rows:
        assert sum(row.breakdown.values()) == row.total
        assert row.total == resolve_budget(f"uniform:{row.bits},{row.rank}", model, space)
    assert plan.fits
    assert plan.smallest_bytes == smallest(model.table(space), space)[0]
    assert sum(plan.parameters) == 6_738_415_616


def test_cards(llama: tuple[MemoryModel, SearchSpace, MemoryPlan]) -> None:
    _, _, plan = llama
    assert [gb for gb, _ in plan.cards] == list(CARDS_GB)
    for gb, row in plan.cards:
        assert row is None or row.total <= gb * 10**9
    best = [row.bits for _, row in plan.cards if row is not None]
    assert best == sorted(best)
    assert dict(plan.cards)[6] is None


def test_levers_save_what_they_say() -> None:
    shape = TrainShape(4, 64)
    model, space = MemoryModel(TINY, shape), space_of(formats=("nf4", "int8"), ranks=(2, 4))
    plan = memory_plan(model, space, 1000, "1000")
    assert not plan.fits
    levers = {lever.change: lever for lever in plan.levers}
    assert {"train.checkpointing=true", "train.batch=1", "train.length=32", "bits with 2 added",
            "ranks with 1 added"} <= set(levers)
    other = MemoryModel(TINY, replace(shape, batch=1))
    assert levers["train.batch=1"].needs == smallest(other.table(space), space)[0]
    assert all(lever.needs + lever.saves == plan.smallest_bytes and lever.saves > 0 for lever in plan.levers)
    assert [lever.saves for lever in plan.levers] == sorted((lever.saves for lever in plan.levers), reverse=True)


def test_stored_scope_has_no_levers_of_training() -> None:
    plan = memory_plan(MemoryModel(TINY, TrainShape(4, 64), "stored"), space_of(), 10**6, "1MB")
    assert not [lever for lever in plan.levers if lever.change.startswith("train")]


def test_json_holds_everything_in_bytes(llama: tuple[MemoryModel, SearchSpace, MemoryPlan]) -> None:
    data = json.loads(json.dumps(llama[2].to_json()))
    assert data["budget"] == {"text": "10GB", "bytes": 10**10}
    assert data["uniform"][0]["feasible"] is True
    assert {"schema_version", "smallest", "cards", "levers", "scope", "fits"} <= set(data)


def test_rendering_names_every_choice_and_card() -> None:
    space = space_of()
    chosen = Allocation(("hqq2", "nf4", "nf4", "int8"), (1, 2, 4, 8))
    model = MemoryModel(TINY, TrainShape(4, 64))
    plan = memory_plan(model, space, 1000, "1000", chosen=chosen)
    assert plan.chosen is not None
    assert plan.chosen.total == int(model.table(space).totals(space.encode(chosen)[None, :])[0])
    out = io.StringIO()
    Console(file=out, width=160).print(render(plan))
    text = out.getvalue()
    for word in ("tiny", "does NOT fit", "hqq2", "int8", "mixed", "24 GB", "train.checkpointing=true", "activ."):
        assert word in text
