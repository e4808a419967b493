"""Search spaces: units by granularity, the index codec and refusal."""

import numpy as np
import pytest

from qra_bo.space import Allocation, SearchSpace, average_bits, make_units, uniform
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.space.space import check_ladder
from qra_bo.utils.errors import SpaceError
from tests.spaces import FORMATS, every_row, make_space

SPEC = spec_from_numbers("llama2_7b", "llama", n_layers=32, hidden_size=4096, intermediate_size=11008, n_heads=32,
                         n_kv_heads=32, head_dim=128, vocab_size=32000, tied=False)


@pytest.mark.parametrize(("granularity", "per_layer", "second"), [
    ("layer", 1, "model.layers.1"), ("block", 2, "model.layers.0.mlp"), ("fused", 4, "model.layers.0.o"),
    ("module", 7, "model.layers.0.self_attn.k_proj")])
def test_units_partition_the_linears(granularity: str, per_layer: int, second: str) -> None:
    units = make_units(SPEC, granularity)
    assert len(units) == 32 * per_layer
    assert units[1].name == second
    members = [m.name for u in units for m in u.linears]
    assert sorted(members) == sorted(m.name for m in SPEC.linears)
    assert len(set(members)) == len(members) == 224
    assert sum(u.numel for u in units) == SPEC.linear_numel == 32 * (4 * 4096**2 + 3 * 4096 * 11008)


def test_codec_is_a_bijection() -> None:
    space = make_space(2)
    rows = every_row(space)
    allocations = [space.decode(row) for row in rows]
    assert len(set(allocations)) == len(rows) == 4**4
    np.testing.assert_array_equal(np.stack([space.encode(a) for a in allocations]), rows)
    assert all(space.contains(a) for a in allocations)


def test_average_bits_weigh_by_parameters() -> None:
    units = make_units(SPEC, "block")
    space = SearchSpace(units, FORMATS, (4, 8))
    formats = tuple("int8" if u.name.endswith("mlp") else "hqq2" for u in units)
    attn, mlp = 4 * 4096**2, 3 * 4096 * 11008
    bits = space.bits(Allocation(formats, (4,) * 64))
    assert bits == (2, 8) * 32
    assert average_bits(bits, space.unit_numel) == pytest.approx((2 * attn + 8 * mlp) / (attn + mlp))
    assert space.unit_numel[:2].tolist() == [attn, mlp]


@pytest.mark.parametrize(("allocation", "match"), [
    (uniform(3, "nf4", 4), "has 2 units; the allocation has 3"), (uniform(2, "fp16", 4), r"\['fp16'\] are not on"),
    (uniform(2, "nf4", 5), "5 is not on the ranks ladder")])
def test_foreign_allocations_are_refused(allocation: Allocation, match: str) -> None:
    space = make_space(2)
    assert not space.contains(allocation)
    with pytest.raises(SpaceError, match=match):
        space.encode(allocation)


@pytest.mark.parametrize("values", [(), (0, 2), (-1, 2), (4, 2), (2, 2), (2, 3.0), (True, 2), ("2",)])
def test_malformed_ladders_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="the ranks ladder must be positive integers, strictly increasing"):
        check_ladder("ranks", values)
