"""Formats and stored bytes of the programs that serve a result."""

import pytest

from qra_bo.memory import MemoryModel, TrainShape, default_format
from qra_bo.memory.formats import FORMATS, WIDTHS, matrix_bytes, parse_format
from qra_bo.memory.plan import memory_plan
from qra_bo.memory.serving import ANY, CONSUMERS, MLX_BITS, TARGET_FORMATS, gguf_bytes, server_rank
from qra_bo.space import uniform
from qra_bo.utils.errors import SpaceError
from tests.memory.spaces import TINY, space_of

SHAPE = TrainShape(2, 32)
SYMMETRIC = [bits for bits, width in WIDTHS.items() if "sym" in width.kinds]
SYM = ("sym2-g64", "sym3-g64", "sym4-g64", "sym8-g64")
OTHERS = [name for name in CONSUMERS if name != ANY]


def bits_a_weight(serve: str, fmt: str) -> float:
    return 8 * sum(CONSUMERS[serve].matrix_bytes(parse_format(fmt), 6, 384)) / (6 * 384)


@pytest.mark.parametrize(("serve", "fmt", "bits"), [
    ("transformers", "sym3-g64", 3.25), ("vllm", "sym5-g128", 5.125), ("transformers", "sym2-g32", 2.5),
    ("llamacpp", "sym2-g64", 4.5), ("llamacpp", "sym3-g128", 4.5), ("llamacpp", "sym4-g32", 4.5),
    ("llamacpp", "sym5-g64", 5.5), ("llamacpp", "sym6-g64", 8.5), ("llamacpp", "sym8-g64", 8.5),
    ("llamacpp", "int3-g64", 4.5), ("llamacpp", "int4-g64", 5.5),
    ("mlx", "sym3-g64", 3.5), ("mlx", "sym6-g32", 7.0), ("mlx", "int2-g128", 2.25),
    *((serve, "fp16", 16.0) for serve in CONSUMERS)])
def test_bits_of_a_weight_in_a_consumers_file(serve: str, fmt: str, bits: float) -> None:
    assert bits_a_weight(serve, fmt) == bits


@pytest.mark.parametrize("serve", CONSUMERS)
def test_what_a_consumer_does_not_load_has_our_bytes(serve: str) -> None:
    for fmt in FORMATS.values():
        if serve == ANY or not CONSUMERS[serve].loads(fmt):
            assert CONSUMERS[serve].matrix_bytes(fmt, 8, 640) == matrix_bytes(fmt, 8, 640)


def test_consumers_load_integer_grids_and_16_bits_alone() -> None:
    loaded = {name: {f.name for f in FORMATS.values() if CONSUMERS[name].loads(f)} for name in CONSUMERS}
    assert loaded[ANY] == set(FORMATS)
    symmetric = {f"sym{bits}-g{group}" for bits in SYMMETRIC for group in (32, 64, 128)} | {"fp16"}
    assert loaded["transformers"] == loaded["vllm"] == symmetric
    assert {name.split("-")[0] for name in loaded["llamacpp"] - symmetric} == {"int2", "int3", "int4"}
    assert {name.split("-")[0] for name in loaded["mlx"] - symmetric} == {"int2", "int3"}
    assert {parse_format(name).bits for name in loaded["mlx"]} == {2, 3, 4, 5, 6, 8, 16}
    assert loaded["exllamav3"] == {"exl3-mul1-2", "exl3-mul1-3", "exl3-mul1-4", "fp16"}


def test_targets_hold_these_formats_exactly_or_rounded() -> None:
    held = {target: {name.split("-")[0] for name, fmt in FORMATS.items() if holds(fmt)}
            for target, (holds, _) in TARGET_FORMATS.items()}
    sym = {f"sym{bits}" for bits in SYMMETRIC} | {"fp16"}
    assert held["compressed_tensors"] == sym
    assert held["gguf"] == sym | {"int2", "int3", "int4", "hqq2", "hqq3", "hqq4", "hqq5"}
    assert held["mlx"] == {f.name.split("-")[0] for f in FORMATS.values()
                           if f.backend in ("integer", "hqq") and f.bits in MLX_BITS} | {"fp16"}


@pytest.mark.parametrize("serve", OTHERS)
def test_default_formats_are_loaded_and_have_their_bits(serve: str) -> None:
    for bits in (*SYMMETRIC, 16):
        fmt = CONSUMERS[serve].default_format(bits)
        assert CONSUMERS[serve].loads(fmt) == (bits in CONSUMERS[serve].widths)
        assert fmt.bits == bits
    assert CONSUMERS[ANY].default_format(3) == default_format(3)


@pytest.mark.parametrize("serve", CONSUMERS)
def test_widths_are_those_of_the_formats_that_are_loaded(serve: str) -> None:
    consumer = CONSUMERS[serve]
    assert consumer.widths == tuple(sorted({fmt.bits for fmt in FORMATS.values() if consumer.loads(fmt)}))


@pytest.mark.parametrize("serve", OTHERS)
def test_columns_beyond_whole_groups_are_refused(serve: str) -> None:
    with pytest.raises(SpaceError, match="sym4-g64"):
        CONSUMERS[serve].matrix_bytes(parse_format("sym4-g64"), 64, 96)


def test_stored_scope_prices_the_consumers_file_and_peak_does_not() -> None:
    space, peaks = space_of(formats=SYM), set()
    for serve in CONSUMERS:
        training = MemoryModel(TINY, SHAPE, matrix_bytes=CONSUMERS[serve].matrix_bytes)
        peaks.add(training.breakdown(space, uniform(space.n_units, "sym3-g64", 4))["weights"])
        memory = MemoryModel(TINY, SHAPE, "stored", matrix_bytes=CONSUMERS[serve].matrix_bytes)
        for fmt in space.formats:
            parts = memory.breakdown(space, uniform(space.n_units, fmt.name, 4))
            matrices = [(m.out_features, m.in_features) for u in space.units for m in u.linears]
            sizes = [CONSUMERS[serve].matrix_bytes(fmt, *sides) for sides in matrices]
            assert (parts["weights"], parts["quant_metadata"]) == tuple(map(sum, zip(*sizes, strict=True)))
            assert parts["adapters"] == sum(2 * 4 * (rows + columns) for rows, columns in matrices)
    assert len(peaks) == 1


def test_lever_of_fewer_bits_is_priced_for_the_consumer() -> None:
    space, budget = space_of(formats=("sym4-g64", "sym8-g64")), {"1kB": 1000}
    plans = {name: memory_plan(MemoryModel(TINY, SHAPE, "stored", matrix_bytes=CONSUMERS[name].matrix_bytes), space,
                               budget, consumer=CONSUMERS[name]) for name in ("mlx", "llamacpp")}
    assert "bits=[2,4,8]" in plans["mlx"].levers
    assert "bits=[2,4,8]" not in plans["llamacpp"].levers


def test_files_of_llamacpp_have_closed_forms() -> None:
    space = space_of(formats=SYM)
    sizes = gguf_bytes(MemoryModel(TINY, SHAPE), space, uniform(space.n_units, "sym4-g64", 4))
    linears = [m for u in space.units for m in u.linears]
    numel, sides = sum(m.numel for m in linears), sum(m.in_features + m.out_features for m in linears)
    norms = 64 * (2 * 4 + 1)
    others = 4 * norms + 2 * 512 * 64  # norms in 32 bits, the tied embedding in 16
    assert sizes == {"base": others + numel * 18 // 32, "adapter": 16 * sides, "merged-f16": others + 2 * numel,
                     "merged-q8_0": others + numel * 34 // 32}


def test_server_rank_is_the_least_that_takes_the_adapter() -> None:
    assert [server_rank(r) for r in ((1, 8), (9,), (1000,))] == [8, 16, 1000]
