import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench import profile_rounding
from bench.profile_rounding import ROUNDED, WHOLE
from bench.search.real_efforts import DEFAULTS
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.sensitivity.io import save_profile
from qra_bo.sensitivity.profile import SensitivityProfile, rehearsal_profile


def _profile(kl: np.ndarray) -> SensitivityProfile:
    units, formats = kl.shape
    return SensitivityProfile(tuple(map(str, range(units))), tuple(f"f{i}" for i in range(formats)), kl, kl, None, 1.0,
                              "drawn", np.full(kl.shape, 1e-3))


def test_a_floor_in_the_divergence_shows_in_its_sum_and_not_in_the_order() -> None:
    kl = np.array([[0.4, 0.001], [0.2, 0.002], [0.1, 0.003]])
    rows = profile_rounding.format_rows({ROUNDED: _profile(kl + 0.01), WHOLE: _profile(kl)})
    assert [r[ROUNDED] - r[WHOLE] for r in rows] == pytest.approx([0.03, 0.03])
    assert [r["spearman"] for r in rows] == pytest.approx([1.0, 1.0])


def test_what_each_profile_predicts_is_compared_seed_by_seed(tmp_path: Path) -> None:
    for kind, losses in ((ROUNDED, [2.0, 3.0]), (WHOLE, [1.9, 2.8])):
        folder = tmp_path / kind / "uniform-4-16"
        folder.mkdir(parents=True)
        (folder / "real.json").write_text(json.dumps([{"test_losses": dict(zip("ab", losses, strict=True))}]))
    (row,) = profile_rounding.trained_rows(["54MB", "uniform:4,16"], tmp_path)
    assert row["difference"] == pytest.approx(-0.15)
    assert row["low"] < -0.15 < row["high"]


def test_what_both_profiles_predict_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    changes = ["oracle=synthetic", "+model=tiny", "data=tiny", "quantizer.rounding=rtn", "bits=[2,3,4,8]",
               "calibrate.lr_scales=[1.0]"]
    config = load_config([*DEFAULTS, *changes])
    profile = rehearsal_profile(make_space(config, make_spec(config)))
    for kind in (ROUNDED, WHOLE):
        path = profile_rounding.profile_path(tmp_path / "w", kind)
        path.parent.mkdir(parents=True)
        save_profile(profile, path)
    profile_rounding.main(["--limits", "uniform:4,4", "--work", str(tmp_path / "w"), "--out", str(tmp_path), *changes])
    rows = json.loads((tmp_path / "profile_rounding.json").read_text())["rows"]
    assert [r["part"] for r in rows] == [*["format"] * 4, "trained"]
    assert rows[-1]["difference"] == rows[-1]["low"] == 0.0  # of one prediction


def test_rounding_of_activations_shows_at_8_bits(tmp_path: Path) -> None:
    changes = ["+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "device=cpu",
               "quantizer.rounding=rtn", "bits=[3,8]"]
    rounded, whole = (profile_rounding.measured(kind, tmp_path, changes) for kind in (ROUNDED, WHOLE))
    low, high = (rounded.quantization_kl.sum(axis=0) / whole.quantization_kl.sum(axis=0))
    assert high > 1.5 > 1.1 > low > 0.9
    assert profile_rounding.measured(WHOLE, tmp_path, ["nothing=read"]).base_loss == whole.base_loss
