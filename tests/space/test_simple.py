"""Fractional choices: the blind rule's order, and what never exceeds its average bits."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.memory import parse_format
from qra_bo.space import Allocation, Linear, SearchSpace, Unit, average_bits
from qra_bo.space.space import blind_order, mix

LOW, HIGH = parse_format("hqq3"), parse_format("nf4")


def make_space(sizes: list[int], layers: list[int] | None = None) -> SearchSpace:
    units = [Unit(f"u{i}", (Linear(f"u{i}.up", 64 * n, 64, layer, "mlp", "up"),))
             for i, (n, layer) in enumerate(zip(sizes, layers or range(len(sizes)), strict=True))]
    return SearchSpace(tuple(units), (LOW, HIGH), (1, 2))


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=7)
BITS = st.fractions(3, 4, max_denominator=60)


def bits_of(space: SearchSpace, a: Allocation) -> float:
    return average_bits(space.bits(a), space.unit_numel)


def test_order_takes_layers_from_both_ends_the_last_first() -> None:
    assert blind_order(make_space([1] * 5)) == (4, 0, 3, 1, 2)
    assert blind_order(make_space([1] * 4)) == (3, 0, 2, 1)
    assert blind_order(make_space([1] * 6, [0, 0, 1, 1, 2, 2])) == (4, 5, 0, 1, 2, 3)


@given(SIZES, BITS, BITS, st.booleans())
def test_a_mix_never_exceeds_its_bits_and_grows_with_them(sizes: list[int], a: Fraction, b: Fraction, drawn: bool
                                                          ) -> None:
    space = make_space(sizes)
    order = np.random.default_rng(0).permutation(len(sizes)).tolist() if drawn else None
    fewer, more = (mix(space, LOW, HIGH, bits, 2, order) for bits in sorted((a, b)))
    assert mix(space, LOW, HIGH, min(a, b), 2, order) == fewer
    for found, bits in ((fewer, min(a, b)), (more, max(a, b))):
        assert bits_of(space, found) <= float(bits) + 1e-12
        assert set(found.ranks) == {2}
    assert all(x <= y for x, y in zip(space.bits(fewer), space.bits(more), strict=True))


@given(SIZES, BITS)
def test_a_mix_is_the_longest_beginning_of_the_order_that_keeps_to_its_bits(sizes: list[int], bits: Fraction) -> None:
    space, order = make_space(sizes), blind_order(make_space(sizes))
    fits = [set(order[:k]) for k in range(len(sizes) + 1)
            if sum((4 if u in order[:k] else 3) * n for u, n in enumerate(sizes)) <= bits * sum(sizes)]
    found = mix(space, LOW, HIGH, bits, 1)
    assert {u for u, f in enumerate(found.formats) if f == HIGH.name} == max(fits, key=len)
