"""The planted landscapes of bench.simple: what the best mix gains, and that nothing gains where units are alike."""

import numpy as np
import pytest

from bench.simple import BUDGET, COMMON, GAIN, planted_oracle
from qra_bo.config import load_config
from qra_bo.pipeline.prepare import checked_budget, make_setting


@pytest.mark.parametrize("alike", [False, True])
def test_the_best_mix_gains_what_is_planted_and_nothing_where_units_are_alike(alike: bool) -> None:
    setting = make_setting(load_config(["effort=quick", "oracle=synthetic", f"budget={BUDGET}", "seed=0",
                                        "memory.scope=stored", "device=cpu", "dtype=float32", *COMMON]))
    oracle, gain = planted_oracle(setting, checked_budget(setting), 0, alike)
    units = oracle.landscape.quantization_sensitivity
    assert bool(np.ptp(units[:, 0]) == 0) == alike
    assert gain == 0 if alike else GAIN <= gain < 1.1 * GAIN
