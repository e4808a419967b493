from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qra_bo.execution import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.space import uniform
from qra_bo.study.baselines import best_scale, calibration_choices
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from tests.study.oracles import PlantedOracle
from tests.study.problem import run


@pytest.mark.parametrize(("rank", "n", "ranks"), [(16, 1, [8]), (16, 2, [16, 4]), (16, 3, [16, 8, 4]), (4, 2, [4, 1]),
                                                  (2, 3, [2, 1]), (1, 2, [1])])
def test_choices_reach_down_to_a_quarter_of_the_rank(rank: int, n: int, ranks: list[int]) -> None:
    assert calibration_choices(uniform(3, "nf4", rank), n) == [uniform(3, "nf4", r) for r in ranks]


def test_the_vertex_of_a_parabola_is_found() -> None:
    trials = [(s, 3 + 0.01 * (np.log2(s) - 0.5) ** 2) for s in (0.5, 1.0, 2.0)]
    scale, inside = best_scale(trials)
    assert scale == 1.41
    assert inside


def test_nearly_equal_ends_do_not_decide_by_noise() -> None:
    one, _ = best_scale([(0.5, 3.9441), (1.0, 3.9248), (2.0, 3.9245)])
    other, _ = best_scale([(0.5, 3.9441), (1.0, 3.9245), (2.0, 3.9248)])
    assert one == pytest.approx(other, rel=0.03)


@pytest.mark.parametrize(("losses", "between"), [((4.364, 4.256, 4.213, 4.205, 5.5), (2.0, 8.0)),
                                                 ((4.140, 3.972, 3.9265, 3.92, 5.2), (2.0, 8.0)),
                                                 ((9.0, 3.93, 3.92, 3.95, 4.4), (1.0, 4.0))])
def test_far_trials_do_not_move_the_vertex(losses: tuple[float, ...], between: tuple[float, float]) -> None:
    scale, inside = best_scale(list(zip((0.5, 1.0, 2.0, 4.0, 8.0), losses, strict=True)))
    assert inside
    assert between[0] < scale < between[1]


def test_an_optimum_at_the_end_of_what_was_tried_is_told() -> None:
    assert best_scale([(0.5, 3.0), (1.0, 2.0), (2.0, 1.0)]) == (2.0, False)
    assert best_scale([(1.0, 2.0), (2.0, 3.0)]) == (1.0, True)
    assert best_scale([(0.5, 1.0), (1.0, 2.0), (2.0, 1.5)]) == (0.5, False)


class Diverging(PlantedOracle):
    """The least loss is at a factor of 2; factors above ``limit`` diverge."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        found = super().evaluate(request, progress)
        diverges = request.learning_rate > self.limit * 1e-3
        return replace(found, state=TrialState.DIVERGED, loss=None) if diverges else found


@pytest.mark.parametrize(("scales", "limit", "at_end"), [([.25, .5, 1.0, 8.0], 1.0, False), ([.25, .5, 1.0], 1.0, True),
                                                         ([.03, .25, .5, 1.0], .5, False)])
def test_a_best_factor_below_one_that_diverged_is_at_no_end(tmp_path: Path, scales: list[float], limit: float,
                                                            at_end: bool) -> None:
    study = run(tmp_path, InProcessExecutor(Diverging(limit)), fine_tunes=False, calibrate__lr_scales=scales,
                effort__max_full_trials=4, confirm__seeds=0, effort__ranking_top=0).study
    assert study.calibration.tried == tuple(1e-3 * s for s in scales)
    assert study.learning_rate == limit * 1e-3
    assert any("at the end of those tried" in message for message in study.warnings) == at_end
