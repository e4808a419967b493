"""The memory plan: what fits, on what, and what to change when it does not."""

from dataclasses import replace

import pytest

from qra_bo.config import load_config, make_space, make_spec
from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.budget import allocation_bytes, largest, resolve_budget, smallest, uniform_bytes
from qra_bo.memory.cards import CARDS
from qra_bo.memory.model import KEYS
from qra_bo.memory.plan import CARDS_GB, SHOWN_RANKS, Plan, memory_plan
from qra_bo.pipeline.pricing import make_memory
from qra_bo.space import SearchSpace, uniform
from tests.memory.spaces import LLAMA2_7B, TINY, space_of

RANKS = (1, 2, 4, 8, 16, 32)
BUDGETS = {"10GB": 10**10, "8GB": 8 * 10**9}


@pytest.fixture(scope="module")
def llama() -> tuple[MemoryModel, SearchSpace, Plan]:
    model, space = MemoryModel(LLAMA2_7B, TrainShape(4, 128)), space_of(LLAMA2_7B, ranks=RANKS)
    return model, space, memory_plan(model, space, BUDGETS)


def test_rows_are_the_models_own_numbers(llama: tuple[MemoryModel, SearchSpace, Plan]) -> None:
    model, space, plan = llama
    assert [(r.fmt, r.rank) for r in plan.uniform] == [(f.name, r) for f in space.formats for r in SHOWN_RANKS]
    for row in plan.uniform:
        assert set(row.breakdown) == set(KEYS)
        assert row.total == resolve_budget(f"uniform:{row.bits},{row.rank}", model, space)
    assert plan.fits
    assert (plan.least.total, plan.most) == (smallest(model.table(space), space)[0],
                                             largest(model.table(space), space)[0])


@pytest.mark.parametrize("granularity", ["layer", "block", "fused", "module"])
def test_a_uniform_choice_has_the_bytes_of_the_search(granularity: str) -> None:
    config = load_config(["+model=llama2_7b", "device=cuda", "task=memory", f"granularity={granularity}"])
    spec = make_spec(config)
    space, memory = make_space(config, spec), make_memory(config, spec, "cuda")
    table = memory.table(space)
    for fmt, rank in ((space.formats[0], 1), (space.formats[1], 4), (space.formats[-1], 32)):
        choice = uniform(space.n_units, fmt.name, rank)
        priced = int(table.totals(space.encode(choice)[None])[0])
        assert priced == uniform_bytes(memory, space, fmt, rank) == allocation_bytes(memory, space, choice)


def test_each_budget_has_its_own_answer(llama: tuple[MemoryModel, SearchSpace, Plan]) -> None:
    model, space, plan = llama
    assert [(b.text, b.size) for b in plan.budgets] == list(BUDGETS.items())
    assert plan.tightest == 8 * 10**9
    for answer in plan.budgets:
        for fmt in space.formats:
            rank = answer.ranks[fmt.name]
            assert rank == 0 or uniform_bytes(model, space, fmt, rank) <= answer.size
            assert rank == space.ranks[-1] or uniform_bytes(model, space, fmt, rank + 1) > answer.size
        assert (answer.best.fmt, answer.best.rank) == ("nf4", answer.ranks["nf4"])
        assert answer.best.total <= answer.size


def test_best_choices_keep_to_the_average_bits() -> None:
    model = MemoryModel(TINY, TrainShape(4, 64), "stored")
    space = space_of(formats=("sym3-g64", "sym8-g64"))
    plan = memory_plan(model, space, {"1GB": 10**9}, most_bits=4)
    assert {row.fmt for row in (plan.budgets[0].best, *plan.cards.values()) if row is not None} == {"sym3-g64"}


def test_cards(llama: tuple[MemoryModel, SearchSpace, Plan]) -> None:
    model, space, plan = llama
    assert tuple(plan.cards) == CARDS_GB
    for gb, row in plan.cards.items():
        assert row is None or row.total <= gb * 2**30
    best = [row.bits for row in plan.cards.values() if row is not None and row.bits is not None]
    assert best == sorted(best)
    assert memory_plan(model, space, BUDGETS, headroom=10**9).cards[6] is None
    named = memory_plan(model, space, {"auto": CARDS["rtx4090"].total_bytes - 10**9}, card=CARDS["rtx4090"],
                        headroom=10**9)
    assert named.cards[24] == named.budgets[0].best  # the table agrees with the budget
    wide = MemoryModel(LLAMA2_7B, TrainShape(64, 1024))
    assert memory_plan(model, space, BUDGETS, on_card=wide).cards[16] is None
    stored = replace(model, scope="stored")  # cards hold the training all the same
    assert memory_plan(stored, space, BUDGETS).cards == plan.cards


def test_levers_save_the_stated_bytes() -> None:
    shape = TrainShape(4, 64)
    model, space = MemoryModel(TINY, shape), space_of(formats=("nf4", "int8"), ranks=(2, 4))
    plan = memory_plan(model, space, {"1000": 1000})
    assert not plan.fits
    assert {"train.checkpointing=true", "train.batch=1 train.accumulate=4", "train.length=32", "bits=[2,4,8]",
            "ranks=[1,2,4]"} <= set(plan.levers)
    other = MemoryModel(TINY, replace(shape, batch=1, accumulate=4))
    assert plan.levers["train.batch=1 train.accumulate=4"] == smallest(other.table(space), space)[0]
    needs = [*plan.levers.values()]
    assert needs == sorted(needs)
    assert needs[-1] < plan.least.total
    assert [row["saves_bytes"] for row in plan.to_json()["levers"]] == [plan.least.total - size for size in needs]
    stored = memory_plan(replace(model, scope="stored"), space, {"1000": 1000})
    assert not [change for change in stored.levers if change.startswith("train")]
