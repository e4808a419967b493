import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.space import uniform
from qra_bo.study.baselines import BY_TRIES, calibration_choices, next_rate
from qra_bo.trials import TrialResult, TrialSpec
from tests.study.oracles import PlantedOracle
from tests.study.problem import run


@pytest.mark.parametrize(("rank", "n", "ranks"), [(16, 1, [8]), (16, 2, [16, 4]), (16, 3, [16, 8, 4]), (4, 2, [4, 1]),
                                                  (2, 3, [2, 1]), (1, 2, [1])])
def test_choices_reach_down_to_a_quarter_of_the_rank(rank: int, n: int, ranks: list[int]) -> None:
    assert calibration_choices(uniform(3, "nf4", rank), n) == [uniform(3, "nf4", r) for r in ranks]


@pytest.mark.parametrize(("tried", "most", "following"), [
    ({1.0: 2.0, 2.0: 3.0}, 7, 0.5), ({1.0: 2.0, 2.0: 1.0}, 7, 4.0), ({1.0: math.inf, 2.0: math.inf}, 7, 0.5),
    ({1.0: 3.0, 2.0: 2.0, 4.0: 2.5}, 7, None), ({1.0: 3.0, 2.0: 2.0, 4.0: math.inf}, 7, None),
    ({1.0: 3.0, 2.0: 2.0}, 2, None), ({1.0: 3.0}, 7, None), ({2e-4: 3.0, 2.0002e-4: 4.0}, 7, None),
    ({1.0: 3.0, 3.0: 2.0, 4.0: 1.0}, 7, 5.333), ({1.0: 2.0, 2.0: 2.0}, 7, None)])
def test_rates_go_on_beyond_the_end_where_the_best_is(tried: dict[float, float], most: int,
                                                      following: float | None) -> None:
    assert next_rate(tried, most) == following


@pytest.mark.parametrize(("best", "curvature", "spread", "tried", "chosen"), [
    (0.3e-3, 1.0, 0.0, 5, 0.25e-3), (0.1e-3, 0.001, 0.1, 3, None), (0.1e-3, 0.1, 0.1, 6, None)])
def test_rates_are_bracketed_unless_text_is_noisier_than_the_gain(
        best: float, curvature: float, spread: float, tried: int, chosen: float | None, tmp_path: Path) -> None:
    """Half, once and twice 0.002 lost 0.723, 0.851 and 6.09 on a 0.5B model: a parabola chose worse than half. Where
    losses by sequence differ at random by 0.1, their mean over 64 has a standard error of about 0.02."""
    found = run(tmp_path, InProcessExecutor(Best(best, curvature, spread)), fine_tunes=False,
                calibrate__lr_scales=[0.5, 1.0, 2.0], effort__max_full_trials=6, confirm__seeds=0).study
    losses = {trial["learning_rate"]: trial["loss"] for trial in found.calibration.trials}
    assert len(losses) == tried
    if chosen is not None:
        assert found.calibration.learning_rate == chosen == min(losses, key=losses.__getitem__)
        assert min(losses) < chosen < max(losses)
    assert not any("at the end" in message for message in found.warnings)


def test_a_prediction_is_checked_at_the_best_rate_of_the_uniform_choice(tmp_path: Path) -> None:
    """The rate for a model's width was twice the best one at 0.5B, and judged ranks by how well that suits them."""
    study = run(tmp_path, InProcessExecutor(Best(0.3e-3)), fine_tunes=False, calibrate__lr_scales=[0.5, 1.0, 2.0],
                effort__max_full_trials=0).study
    found, checked = study.calibration, study.prediction
    assert found.source == BY_TRIES
    assert not study.calibrated
    assert min(found.tried) < found.learning_rate < max(found.tried)
    assert found.uniform_baselines == (checked.reference,)
    at_best = [e for e in study.trials if e.spec.learning_rate == found.learning_rate]
    assert {e.allocation for e in study.trials} == {e.allocation for e in at_best} > {checked.reference}
    assert len(study.trials) == len(at_best) + len(found.tried) - 1
    assert {e.stage for e in study.trials} == {"comparison"}


class Best(PlantedOracle):
    """The least loss is at ``rate``; losses of 64 sequences spread by ``spread``, other ones for each rate."""

    def __init__(self, rate: float, curvature: float = 1.0, spread: float = 0.0) -> None:
        super().__init__()
        self.rate, self.curvature, self.spread = rate, curvature, spread

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        found = super().evaluate(request, progress)
        loss = 3 + self.curvature * math.log(request.learning_rate / self.rate) ** 2
        noise = np.random.default_rng(round(1e7 * request.learning_rate)).normal(size=64)
        noise -= noise.mean()
        return replace(found, loss=loss, sequence_losses=tuple(
            (10 * (loss + self.spread * x), 10, i) for i, x in enumerate(noise)))
