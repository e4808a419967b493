"""The model of the CUDA caching allocator against its rules, worked out by hand, and against random sequences."""

from itertools import pairwise

import numpy as np
import pytest

from bench.memory.allocator import OVER, draw, predicted, simulated
from bench.memory.caching_allocator import LARGE_BUFFER, SMALL_BUFFER, CachingAllocator
from bench.memory.gpu import llama
from bench.memory.replay import TrialTracer, reserved_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import ASSUMED, MemoryModel, TrainShape
from qra_bo.space import Allocation, SearchSpace, make_units

MIB = 1 << 20


@pytest.mark.parametrize(("expandable", "size", "reserved"), [
    (False, 1, 2 * MIB), (False, MIB, 2 * MIB), (False, MIB + 1, 20 * MIB), (False, 10 * MIB - 512, 20 * MIB),
    (False, 10 * MIB, 10 * MIB), (False, 10 * MIB + 1, 12 * MIB), (False, 21 * MIB, 22 * MIB),
    (True, 1, 2 * MIB), (True, MIB + 1, 20 * MIB), (True, 21 * MIB, 40 * MIB)])
def test_first_allocation_reserves_a_segment_of_its_class_or_steps(expandable: bool, size: int, reserved: int) -> None:
    allocator = CachingAllocator(expandable)
    allocator.malloc(size)
    assert allocator.reserved == reserved


def test_sizes_are_rounded_to_512_bytes() -> None:
    allocator = CachingAllocator(expandable=True)
    assert [allocator.malloc(size).size for size in (1, 512, 513)] == [512, 512, 1024]
    assert allocator.allocated == 2048


def test_a_large_block_is_only_split_where_over_1_mib_remains() -> None:
    allocator = CachingAllocator(expandable=False)
    block = allocator.malloc(12 * MIB)
    allocator.free(block)
    assert allocator.malloc(11 * MIB + 1).size == 12 * MIB
    assert allocator.reserved == 12 * MIB


def test_the_smallest_free_block_is_taken() -> None:
    allocator = CachingAllocator(expandable=False)
    large, small = allocator.malloc(40 * MIB), allocator.malloc(30 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.malloc(30 * MIB).address == small.address
    assert allocator.reserved == 70 * MIB


def test_freed_neighbours_become_one_block() -> None:
    allocator = CachingAllocator(expandable=True)
    blocks = [allocator.malloc(10 * MIB) for _ in range(4)]
    for block in (blocks[0], blocks[2], blocks[1]):
        allocator.free(block)
    assert allocator.malloc(30 * MIB).address == blocks[0].address
    assert allocator.reserved == 40 * MIB


def test_an_expandable_segment_extends_the_free_block_at_its_end() -> None:
    allocator = CachingAllocator(expandable=True)
    allocator.free(allocator.malloc(20 * MIB))
    allocator.malloc(50 * MIB)
    assert allocator.reserved == 60 * MIB
    plain = CachingAllocator(expandable=False)
    plain.free(plain.malloc(20 * MIB))
    plain.malloc(50 * MIB)
    assert plain.reserved == 70 * MIB


def test_a_segment_with_a_live_block_is_not_returned() -> None:
    allocator = CachingAllocator(expandable=False)
    kept, gone = allocator.malloc(2 * MIB), allocator.malloc(2 * MIB)
    allocator.free(gone)
    allocator.empty_cache()
    assert allocator.reserved == LARGE_BUFFER
    allocator.free(kept)
    allocator.empty_cache()
    assert allocator.reserved == 0


@pytest.mark.parametrize("expandable", [False, True])
def test_random_sequences_keep_the_books(expandable: bool) -> None:
    rng, allocator = np.random.default_rng(0), CachingAllocator(expandable)
    live = []
    for step in range(4000):
        if live and rng.random() < 0.5:
            allocator.free(live.pop(int(rng.integers(len(live)))))
        else:
            live.append(allocator.malloc(int(2 ** rng.uniform(4, 26))))
        spans = sorted((b.address, b.address + b.size) for b in live)
        if step % 100 == 0:
            allocator.empty_cache()
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert allocator.allocated == sum(b.size for b in live) <= allocator.reserved <= allocator.peak_reserved
    for block in live:
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved == allocator.allocated == 0
    assert allocator.peak_reserved > SMALL_BUFFER


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_prediction_covers_the_simulated_allocator(checkpointing: bool, accumulate: int) -> None:
    spec, shape = llama(4), TrainShape(1, 512, checkpointing, device="cuda", accumulate=accumulate)
    space = SearchSpace(make_units(spec, "layer"), tuple(map(parse_format, ("hqq3", "nf4"))), (4, 16))
    allocation = Allocation(("nf4", "hqq3", "nf4", "nf4"), (4, 16, 4, 16))
    trial = TrialTracer(spec).trial_of(space, allocation, shape)
    total = int(MemoryModel(spec, shape).table(space).totals(space.encode(allocation)[None, :])[0])
    reserved = reserved_bytes(trial, trial.linears[::-1], expandable=True)
    assert trial.live < reserved <= total
    assert len(trial.linears) == 7 * spec.n_layers


@pytest.mark.slow
def test_prediction_of_7b_shapes_covers_the_simulated_allocator() -> None:
    rng = np.random.default_rng(7)
    rows = [simulated(*tuple_) for tuple_ in (draw(rng, True) for _ in range(12)) if tuple_[0] == "Llama-3.1-8B"]
    assert rows
    assert all(0 <= predicted(row) / row["reserved_expandable"] - 1 <= OVER for row in rows)
    assert set(ASSUMED) == {"cpu", "cuda", "cuda, checkpointed"}
