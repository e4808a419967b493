"""The learning rate's rule: where it looks, where it stops, and what it takes."""

import math
from collections.abc import Callable

import pytest

from bench.table1.rates import calibrate


def parabola(centre: float) -> Callable[[float], float]:
    return lambda s: 3.0 + 0.1 * math.log(s / centre) ** 2


def test_an_optimum_between_the_factors_is_the_vertex_and_nothing_more_is_tried() -> None:
    rate = calibrate([0.5, 1.0, 2.0], 5, parabola(1.3))
    assert rate.lr_scale == 1.3
    assert rate.inside
    assert [s for s, _ in rate.trials] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("centre", "tried"), [(5.0, [0.5, 1, 2, 4, 8]), (0.2, [0.125, 0.25, 0.5, 1, 2]),
                                               (2.5, [0.5, 1, 2, 4])])
def test_an_end_is_extended_outwards_until_the_best_lies_inside(centre: float, tried: list[float]) -> None:
    rate = calibrate([0.5, 1.0, 2.0], 5, parabola(centre))
    assert [s for s, _ in rate.trials] == tried
    assert rate.lr_scale == pytest.approx(centre, rel=5e-3)


def test_rates_that_diverge_are_passed_over() -> None:
    rate = calibrate([0.5, 1.0, 2.0], 5, lambda s: None if s > 0.3 else 3.0 + s)
    assert [s for s, _ in rate.trials] == [0.125, 0.25]
    assert calibrate([0.5, 1.0], 4, lambda s: None) is None
    assert calibrate([1.0], 5, lambda s: 2.0) == calibrate([1.0], 1, lambda s: 2.0)
