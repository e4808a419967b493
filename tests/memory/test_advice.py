"""The advice on a budget: its regions meet where uniform choices begin to fit, and what spare bytes buy fits."""

from dataclasses import replace

import numpy as np
import pytest

from qra_bo.memory import MemoryModel, TrainShape, parse_format
from qra_bo.memory.advice import (
    BITS,
    MIXING_PAYS,
    NOTHING_BINDS,
    NOTHING_FITS,
    RANKS,
    advice_on,
    best_uniform,
    largest_rank,
    with_embeddings,
    within_average,
)
from qra_bo.memory.budget import smallest, uniform_bytes
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.space import DecoderSpec, uniform
from tests.memory.spaces import LLAMA2_7B, SMOLLM2, TINY, space_of

MODEL = MemoryModel(TINY, TrainShape(4, 64))
SPACE = space_of(formats=("hqq2", "hqq3", "nf4", "int8"), ranks=(1, 4, 8))


def needs(fmt: str, rank: int) -> int:
    return uniform_bytes(MODEL, SPACE, parse_format(fmt), rank)


@pytest.mark.parametrize(("size", "region"), [
    (needs("int8", 8), NOTHING_BINDS), (needs("int8", 8) - 1, RANKS), (needs("int8", 1), RANKS),
    (needs("int8", 1) - 1, BITS), (needs("nf4", 1), BITS), (needs("nf4", 1) - 1, MIXING_PAYS),
    (needs("hqq2", 1), MIXING_PAYS), (smallest(MODEL.table(SPACE), SPACE)[0] - 1, NOTHING_FITS)])
def test_regions_begin_where_a_uniform_choice_fits(size: int, region: str) -> None:
    assert advice_on(MODEL, SPACE, size).region == region


def test_a_uniform_choice_may_have_a_rank_below_the_ladders() -> None:
    size, coarse = needs("nf4", 4) - 1, space_of(formats=("hqq2", "hqq3", "nf4", "int8"), ranks=(4, 8))
    assert "Uniform 8 bits (int8) fits with rank 2 of at most 8" in advice_on(MODEL, coarse, size).sentence
    least = smallest(MODEL.table(coarse), coarse)[0]
    assert needs("hqq2", 1) < least
    assert advice_on(MODEL, coarse, least - 1).region == NOTHING_FITS  # a search needs a mixed one that fits


def test_the_largest_rank_may_lie_above_ranks_that_need_more() -> None:
    space, nf4 = space_of(SMOLLM2, formats=("nf4",), ranks=(1, 32)), parse_format("nf4")
    model = MemoryModel(SMOLLM2, TrainShape(1, 512, True, optimizer="adamw_8bit", device="cuda"))
    sizes = [uniform_bytes(model, space, nf4, rank) for rank in range(1, 33)]
    assert sizes != sorted(sizes)  # moments of large tensors have 8 bits
    for size in (*sizes, min(sizes) - 1):
        fitting = [rank for rank, needed in enumerate(sizes, start=1) if needed <= size]
        assert largest_rank(model, space, nf4, size) == max(fitting, default=0)


def test_a_limit_on_average_bits_binds_where_memory_does_not() -> None:
    size = needs("int8", 8)
    assert advice_on(MODEL, SPACE, size, most_bits=8).region == NOTHING_BINDS
    assert advice_on(MODEL, SPACE, size, most_bits=6).region == BITS


@pytest.mark.parametrize(("formats", "widest"), [
    (("hqq2", "nf4", "int8", "fp16"), "int8"), (("nf4", "fp16"), "fp16"), (("hqq2", "hqq3"), "hqq3"),
    (("int8", "hqq8", "fp16"), "int8")])
def test_the_widest_format_has_at_least_8_bits_where_there_is_one(formats: tuple[str, ...], widest: str) -> None:
    assert space_of(formats=formats).widest.name == widest


@pytest.mark.parametrize(("scope", "accumulate", "keys"), [
    ("peak", 1, ""), ("peak", 6, "train.batch=2 train.accumulate=3"), ("peak", 7, ""), ("stored", 6, "")])
def test_spare_bytes_buy_a_batch_that_keeps_the_sequences_of_a_step(scope: str, accumulate: int, keys: str) -> None:
    space, int8 = space_of(LLAMA2_7B, formats=("nf4", "int8"), ranks=(8, 32)), parse_format("int8")
    shape = TrainShape(1, 1024, accumulate=accumulate, device="cuda")
    model = MemoryModel(LLAMA2_7B, shape, scope)
    two = uniform_bytes(replace(model, shape=replace(shape, batch=2)), space, int8, 32)
    assert " ".join(map("=".join, advice_on(model, space, two).offer.items())) == keys
    assert not advice_on(model, space, two - 1).offer


@pytest.mark.parametrize("most_bits", [None, 3.0])
def test_an_embedding_is_packed_as_far_as_it_buys_bits_or_ranks(most_bits: float | None) -> None:
    space, ranks = space_of(SMOLLM2, formats=("t2", "t3", "nf4"), ranks=(1, 2, 8)), range(1, 9)
    models = {bits: MemoryModel(SMOLLM2, TrainShape(1, 64, embeddings=bits)) for bits in WIDTHS}
    costs = {(bits, fmt, rank): uniform_bytes(model, space, fmt, rank) for bits, model in models.items()
             for fmt in within_average(space, most_bits) for rank in ranks}
    found = set()
    for size in range(min(costs.values()) - 10**6, max(costs.values()) + 8 * 10**6, 8 * 10**6):
        fitting = [(fmt.bits, rank, bits) for (bits, fmt, rank), cost in costs.items() if cost <= size]
        best = with_embeddings(models[16], space, size, most_bits=most_bits).shape.embeddings
        assert best == max(fitting, default=(0, 0, 6))[2]
        found.add(best)
        wanted = uniform(space.n_units, "t3", 8)
        least = [bits for bits in WIDTHS if uniform_bytes(models[bits], space, parse_format("t3"), 8) <= size]
        given = with_embeddings(models[16], space, size, given=wanted).shape.embeddings
        assert given == (least[0] if least else 6)
    assert found == set(WIDTHS)
    stored = replace(models[16], scope="stored")
    assert with_embeddings(stored, space, 10**9) == stored  # there it takes no bytes


@pytest.mark.parametrize("spec", [SMOLLM2, LLAMA2_7B])
def test_more_bytes_never_buy_fewer_bits_nor_a_smaller_rank_of_equal_bits(spec: DecoderSpec) -> None:
    space = space_of(spec, formats=("t2", "t3", "nf4", "int8"), ranks=(1, 8, 32))
    memory, widths = MemoryModel(spec, TrainShape(1, 64, device="cuda")), set()
    last, most = (0, 0), (8, 32)
    for size in np.linspace(*(smallest(memory.table(space), space)[0] * n for n in (0.7, 3.0)), 60).astype(int):
        own = with_embeddings(memory, space, int(size))
        best = best_uniform(own, space, int(size), None)
        now = (0, 0) if best is None else (best[0].bits, best[1])
        assert now >= last
        last, widths = now, widths | {own.shape.embeddings}
    assert last == most
    assert {16, 6} <= widths
