from pathlib import Path

import numpy as np
import pytest

from bench import profile_rounding
from bench.profile_rounding import ROUNDED, WHOLE
from qra_bo.sensitivity.profile import SensitivityProfile


def _profile(kl: np.ndarray) -> SensitivityProfile:
    units, formats = kl.shape
    return SensitivityProfile(tuple(map(str, range(units))), tuple(f"f{i}" for i in range(formats)), kl, kl, None, 1.0,
                              "drawn", np.full(kl.shape, 1e-3))


def test_a_floor_in_the_divergence_shows_in_its_sum_and_not_in_the_order() -> None:
    kl = np.array([[0.4, 0.001], [0.2, 0.002], [0.1, 0.003]])
    rows = profile_rounding.format_rows({ROUNDED: _profile(kl + 0.01), WHOLE: _profile(kl)})
    assert [r[ROUNDED] - r[WHOLE] for r in rows] == pytest.approx([0.03, 0.03])
    assert [r["spearman"] for r in rows] == pytest.approx([1.0, 1.0])


def test_rounding_of_activations_shows_at_8_bits(tmp_path: Path) -> None:
    changes = ["+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "device=cpu",
               "quantizer.rounding=rtn", "bits=[3,8]"]
    rounded, whole = (profile_rounding.measured(kind, tmp_path, changes) for kind in (ROUNDED, WHOLE))
    low, high = (rounded.quantization_kl.sum(axis=0) / whole.quantization_kl.sum(axis=0))
    assert high > 1.5 > 1.1 > low > 0.9
    assert profile_rounding.measured(WHOLE, tmp_path, ["nothing=read"]).base_loss == whole.base_loss
