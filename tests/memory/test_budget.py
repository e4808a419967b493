"""Sizes, budgets and feasibility."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.memory import MemoryModel, TrainShape, parse_format
from qra_bo.memory.budget import (
    Auto,
    Simple,
    Size,
    allocation_bytes,
    check_budget,
    describe,
    format_for,
    free_bytes,
    largest,
    mix_text,
    parse_budget,
    parse_size,
    resolve_budget,
    simple_choice,
    smallest,
)
from qra_bo.memory.formats import BITS
from qra_bo.space import Allocation, DecoderSpec, average_bits, uniform
from qra_bo.space.space import blind_order, wider_units
from qra_bo.utils.errors import BudgetError, ConfigError, SpaceError
from tests.memory.spaces import TINY, space_of

MODEL = MemoryModel(TINY, TrainShape(2, 32))


@pytest.mark.parametrize(("text", "size"), [
    ("10GB", 10**10), ("10 GB", 10**10), ("10gb", 10**10), (" 10GiB ", 10 * 2**30), ("512MB", 512 * 10**6),
    ("512mib", 2**29), ("1.5GB", 1_500_000_000), ("0.1GB", 10**8), ("7", 7), (123456, 123456), ("2TB", 2 * 10**12),
    ("64KiB", 65536), ("100B", 100)])
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["-1GB", "ten", "0", "NaN", "inf", "", "GB", "10  GB", "10 G B", "1e9", "1.5", "10GBs",
                                  "0GB", "0.0000001kB", "1,5GB", "0x10", True, "uniform:4,4", "auto"])
def test_malformed_sizes_are_refused_with_the_rule(text: str) -> None:
    with pytest.raises(BudgetError, match="a size is a positive number with a unit"):
        parse_size(text)


def test_budgets() -> None:
    assert parse_budget("auto") == Auto("auto")
    assert parse_budget("Uniform:4, 16") == Simple("Uniform:4, 16", Fraction(4), 16)
    assert parse_budget("mix: 3.8,2") == Simple("mix: 3.8,2", Fraction(19, 5), 2)
    assert parse_budget("8GB") == Size("8GB", 8 * 10**9)
    assert parse_budget("12B") == Size("12B", 12)
    for text in ("12", 12):
        with pytest.raises(BudgetError, match="12 bytes; give it a unit, as in 12GB"):
            parse_budget(text)
    for text in ("uniform:4", "uniform:4,0", "uniform:a,b", "uniform", "uniform:3.8,2", "mix:3.8", "mix:3.8,0",
                 "mix:.8,2", "mix:17,2", "mix:0.5,2"):
        with pytest.raises(BudgetError, match="is not a size"):
            parse_budget(text)
    with pytest.raises(ConfigError, match="9 bits"):
        parse_budget("uniform:9,4")


def test_resolving() -> None:
    space = space_of()
    assert resolve_budget("3MB", MODEL, space) == 3_000_000
    on_ladder = Allocation(("nf4",) * 4, (4,) * 4)
    assert resolve_budget("uniform:4,4", MODEL, space) == \
        int(MODEL.table(space).totals(space.encode(on_ladder)[None, :])[0])
    assert resolve_budget("uniform:16,3", MODEL, space) > resolve_budget("uniform:8,3", MODEL, space)
    stored = MemoryModel(TINY, TrainShape(2, 32), "stored")
    assert resolve_budget("uniform:4,4", stored, space) < resolve_budget("uniform:4,4", MODEL, space)
    assert resolve_budget("auto", MODEL, space, free=10**9, headroom=10**8) == 9 * 10**8
    with pytest.raises(BudgetError, match="headroom"):
        resolve_budget("auto", MODEL, space, free=10**8, headroom=10**9)


def test_a_mix_is_priced_as_its_allocation_and_whole_bits_as_the_uniform_choice() -> None:
    space = space_of()
    choice = parse_budget("mix:3.5,4")
    found = simple_choice(choice, space)
    assert found == Allocation(("nf4", *found.formats[1:3], "nf4"), (4,) * 4)
    assert set(found.formats) == {"nf4", format_for(3, space).name}
    assert average_bits([parse_format(f).bits for f in found.formats], space.unit_numel) <= 3.5
    assert resolve_budget(choice, MODEL, space) == allocation_bytes(MODEL, space, found)
    for bits in sorted({f.bits for f in space.formats} | {16}):
        assert resolve_budget(f"mix:{bits}.0,3", MODEL, space) == resolve_budget(f"uniform:{bits},3", MODEL, space)
    wide, absent = space_of(formats=("nf4", "fp16")), next(bits for bits in range(5, 16) if bits not in BITS)
    found = simple_choice(parse_budget(f"mix:{absent},3"), wide)
    assert set(found.formats) == {"nf4", "fp16"}  # the widths of the space around one that no format has
    assert resolve_budget(f"mix:{absent},3", MODEL, wide) == allocation_bytes(MODEL, wide, found)
    assert set(simple_choice(parse_budget("mix:8,3"), wide).formats) == {"nf4", "fp16"}  # nor has it 8 bits
    assert simple_choice(parse_budget("uniform:8,3"), wide) == uniform(4, format_for(8, wide).name, 3)
    with pytest.raises(SpaceError, match="between no two"):
        resolve_budget("mix:8.5,3", MODEL, space)


@pytest.mark.parametrize(("low", "high"), [("hqq2", "hqq3"), ("hqq3", "nf4"), ("nf4", "int8")])
@pytest.mark.parametrize("wider", [1, 2, 3])
def test_every_fractional_choice_has_a_text(low: str, high: str, wider: int) -> None:
    space = space_of()
    chosen = wider_units(blind_order(space))[wider]
    allocation = Allocation(tuple(high if w else low for w in chosen), (2,) * 4)
    assert simple_choice(parse_budget(mix_text(allocation, space)), space) == allocation


def test_a_gpu_is_asked_for_its_free_bytes_by_a_process_of_its_own(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("class cuda:\n    def mem_get_info(device):\n"
                                       "        return {'cuda:1': 5 * 10**9}[device], 10**10\n")
    monkeypatch.syspath_prepend(tmp_path)  # the child's torch; this process has imported the real one
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("this process would keep a CUDA context"))
    assert free_bytes("cuda:1") == 5 * 10**9
    with pytest.raises(BudgetError, match=r"how much memory is free on cuda:2 \(KeyError: 'cuda:2'\); name a size"):
        free_bytes("cuda:2")


SMALL = DecoderSpec(TINY.name, TINY.family, tuple(m for m in TINY.linears if m.layer < 2), 2, TINY.hidden_size,
                    TINY.intermediate_size, TINY.n_heads, TINY.n_kv_heads, TINY.head_dim, TINY.vocab_size, TINY.tied,
                    TINY.other_numel)


@settings(deadline=None)
@given(batch=st.integers(1, 3), length=st.sampled_from([2, 8, 64]), checkpointing=st.booleans(),
       scope=st.sampled_from(["peak", "stored"]), compute=st.sampled_from([2, 4]))
def test_smallest_and_largest_equal_brute_force(batch: int, length: int, checkpointing: bool, scope: str,
                                                compute: int) -> None:
    space = space_of(SMALL, "block", ("hqq2", "t3", "nf4", "int8"), (1, 4))
    table = MemoryModel(SMALL, TrainShape(batch, length, checkpointing, compute), scope).table(space)
    rows = np.array([(*q, *r) for q in itertools.product(range(4), repeat=4)
                     for r in itertools.product(range(2), repeat=4)])
    totals = table.totals(rows)
    for found, expected in ((smallest(table, space), totals.min()), (largest(table, space), totals.max())):
        assert found[0] == expected
        assert table.totals(space.encode(found[1])[None, :])[0] == expected


def test_infeasible_budget_names_the_smallest_allocation() -> None:
    space = space_of(formats=("hqq2", "nf4"), ranks=(2, 4))
    table = MODEL.table(space)
    need, least = smallest(table, space)
    check_budget(need, table, space, MODEL)
    with pytest.raises(BudgetError, match=rf"of {need - 1:,} bytes is below the smallest allocation, {need:,} bytes "
                                          rf"\({describe(least, space)}, 4 units\)"):
        check_budget(need - 1, table, space, MODEL)
    with pytest.raises(BudgetError, match=r"10 bytes \(a bare number means bytes\)"):
        check_budget(10, table, space, MODEL)
