"""Properties and closed forms of the memory model; what it is held to on real steps is in test_traced.py."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.activations import rounding_bytes
from qra_bo.memory.formats import matrix_bytes, parse_format, scratch_bytes
from qra_bo.memory.model import KEYS
from qra_bo.memory.optimizers import LEAST_8BIT, OPTIMIZERS, shared_bytes, state_bytes, update_bytes
from qra_bo.space import Allocation, CostTable, SearchSpace, uniform
from tests.memory.spaces import SMOLLM2, TINY, space_of

SHAPES = st.builds(TrainShape, batch=st.integers(1, 8), length=st.integers(2, 64), checkpointing=st.booleans(),
                   compute_dtype_bytes=st.sampled_from([2, 4]), logits_chunk=st.sampled_from([0, 1, 16, 128]),
                   device=st.sampled_from(["cpu", "cuda"]),
                   optimizer=st.sampled_from(OPTIMIZERS), accumulate=st.sampled_from([1, 4]))
HQQ, MIXED = ("hqq2", "hqq3", "hqq4", "hqq8"), ("hqq2", "hqq3", "nf4", "int8")
GRANULARITY = st.sampled_from(["layer", "block", "fused", "module"])


def rows_of(data: st.DataObject, space: SearchSpace, n: int) -> np.ndarray:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    q = rng.integers(0, len(space.formats), (n, space.n_units))
    return np.concatenate([q, rng.integers(0, len(space.ranks), (n, space.n_units))], axis=1)


def total(model: MemoryModel, space: SearchSpace, allocation: Allocation) -> int:
    return int(model.table(space).totals(space.encode(allocation)[None, :])[0])


def by_hand(table: CostTable, row: np.ndarray) -> int:
    n = table.shape[0]
    picks = [(u, int(row[u]), int(row[n + u])) for u in range(n)]
    return max(p.fixed + sum(int(p.unit[i]) for i in picks) + max(int(p.spike[i]) for i in picks) for p in table.phases)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, granularity=GRANULARITY, scope=st.sampled_from(["peak", "stored"]), data=st.data())
def test_totals_equal_scalar_sums_and_breakdowns(
        shape: TrainShape, granularity: str, scope: str, data: st.DataObject) -> None:
    space = space_of(granularity=granularity)
    model = MemoryModel(TINY, shape, scope)
    table, rows = model.table(space), rows_of(data, space, 5)
    totals = table.totals(rows)
    for row, predicted in zip(rows, totals, strict=True):
        allocation = space.decode(row)
        assert by_hand(table, row) == predicted
        parts = model.breakdown(space, allocation)
        assert tuple(parts) == KEYS
        assert sum(parts.values()) == predicted
        assert min(parts.values()) >= 0
        assert all(type(value) is int for value in parts.values())  # bytes, whole ones; GB are made when printed
        by_phase = {p.name: by_hand(CostTable((p,)), row) for p in model.phases(space)}
        assert by_phase[model.phase_breakdown(space, allocation)[0]] == max(by_phase.values())
        assert scope == "stored" or by_phase["load"] == min(by_phase.values())


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, granularity=GRANULARITY, data=st.data())
def test_more_rank_batch_or_length_never_needs_less(shape: TrainShape, granularity: str, data: st.DataObject) -> None:
    # At some rank moments of 8 bits or pages begin, and a tensor's states shrink; AdamW's own only grow.
    space = space_of(granularity=granularity)
    rows = rows_of(data, space, 6)
    higher = rows.copy()
    higher[:, space.n_units:] = np.minimum(rows[:, space.n_units:] + 1, len(space.ranks) - 1)
    plain = MemoryModel(TINY, replace(shape, optimizer="adamw")).table(space)
    assert (plain.totals(higher) >= plain.totals(rows)).all()
    here = MemoryModel(TINY, shape).table(space).totals(rows)
    for other in (replace(shape, batch=shape.batch + 1), replace(shape, length=shape.length + 7)):
        assert (MemoryModel(TINY, other).table(space).totals(rows) >= here).all()


@pytest.mark.parametrize(("formats", "scope"), [(HQQ, "peak"), (HQQ, "stored"), (MIXED, "peak")])
@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_more_bits_never_need_less_but_for_scratch_between_backends(formats: tuple[str, ...], scope: str,
                                                                    shape: TrainShape, data: st.DataObject) -> None:
    # The one exception to more bits needing more: what unpacks fewer bits may need more scratch while it does.
    space = space_of(formats=formats)
    rows = rows_of(data, space, 6)
    higher = rows.copy()
    higher[:, :space.n_units] = np.minimum(rows[:, :space.n_units] + 1, 3)
    scratch = 0 if formats == HQQ else max(
        scratch_bytes(f, m.out_features, m.in_features, shape.device, shape.compute_dtype_bytes)
        for f in space.formats for m in TINY.linears)
    scratch += scratch // 50  # CUDA's allowance for fragmentation
    table = MemoryModel(TINY, shape, scope).table(space)
    assert (table.totals(higher) >= table.totals(rows) - scratch).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_twice_the_batch_doubles_only_activations(device: str) -> None:
    # A unit mixed up anywhere (bits for bytes, elements for bytes, GiB for GB) breaks a scaling law.
    shape = TrainShape(2, 64, device=device)
    space = space_of(SMOLLM2, ranks=(4,))
    once = MemoryModel(SMOLLM2, shape).breakdown(space, uniform(30, "nf4", 4))
    twice = MemoryModel(SMOLLM2, replace(shape, batch=4)).breakdown(space, uniform(30, "nf4", 4))
    for key in ("weights", "quant_metadata", "unquantised", "adapters", "optimizer"):
        assert once[key] == twice[key]
    assert twice["activations"] == pytest.approx(2 * once["activations"], rel=0.01)


def test_stored_scope_is_the_papers_accounting() -> None:
    space = space_of(SMOLLM2, formats=("nf4-nodq", "int8"), ranks=(16,))
    model = MemoryModel(SMOLLM2, TrainShape(4, 128), "stored")
    adapters = sum(16 * (m.in_features + m.out_features) for m in SMOLLM2.linears)
    stored = sum(sum(matrix_bytes(parse_format("nf4-nodq"), m.out_features, m.in_features)) for m in SMOLLM2.linears)
    assert total(model, space, uniform(30, "nf4-nodq", 16)) == stored + 2 * adapters
    assert round((stored + 2 * adapters) / 1e6, 1) == 69.5  # METHOD: uniform NF4 r = 16, single quantisation
    parts = model.breakdown(space, uniform(30, "nf4-nodq", 16))
    assert parts["unquantised"] == parts["activations"] == parts["optimizer"] == 0


@pytest.mark.parametrize("compute", [2, 4])
def test_resident_parts_have_closed_forms(compute: int) -> None:
    space = space_of(ranks=(8,))
    parts = MemoryModel(TINY, TrainShape(2, 32, False, compute)).breakdown(space, uniform(4, "nf4", 8))
    params = 8 * sum(m.in_features + m.out_features for m in TINY.linears)
    counters = 4 * 2 * len(TINY.linears)  # AdamW's step counts
    assert parts["weights"] == TINY.linear_numel // 2
    assert parts["adapters"] == compute * params
    assert parts["optimizer"] == 8 * params + (4 * params if compute == 2 else 0) + counters
    assert parts["unquantised"] == compute * TINY.other_numel


@pytest.mark.parametrize("compute", [2, 4])
def test_fixed_bytes_of_loading_and_of_a_step(compute: int) -> None:
    shape = TrainShape(2, 32, False, compute)
    model = MemoryModel(TINY, shape)
    phases = {phase.name: phase.fixed for phase in model.phases(space_of())}
    others = model.unquantised_bytes + model.embedding_bytes + shared_bytes(shape.optimizer)
    tables = 1088 + 448  # levels and maps of the quantisers, the scalars of a step
    assert phases["load"] == others + rounding_bytes(TINY, shape) + tables
    assert phases["step"] - phases["load"] == model.layer.inputs  # the batch alone stays


def test_optimiser_states_have_closed_forms() -> None:
    numel = np.array([1, LEAST_8BIT - 1, LEAST_8BIT, 100_000])
    fp32 = 8 * numel
    assert (state_bytes("adamw", numel) == fp32 + 4).all()
    assert (state_bytes("adamw_8bit", numel) == np.where(numel < 4096, fp32, 2 * numel + 8 * -(-numel // 256))).all()
    for device in ("cpu", "cuda"):
        assert not update_bytes("adamw", numel, device).any()
    assert not update_bytes("adamw_8bit", numel, "cuda").any()


def test_finer_units_bound_the_same_allocation() -> None:
    shape = TrainShape(4, 64, True)
    coarse, fine = space_of(), space_of(granularity="module")
    for fmt, rank in itertools.product(("hqq2", "int8"), (1, 8)):
        exact = total(MemoryModel(TINY, shape), coarse, uniform(4, fmt, rank))
        bound = total(MemoryModel(TINY, shape), fine, uniform(28, fmt, rank))
        assert exact <= bound <= 1.05 * exact
