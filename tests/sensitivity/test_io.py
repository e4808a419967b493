"""The strict codec of profiles, and measured files of others."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qra_bo.sensitivity.profile import SensitivityProfile, profile_from_json, profile_to_json, save_profile
from qra_bo.utils.errors import ProfileError
from tests.spaces import make_profile, make_space


def load_profile(path: Path) -> SensitivityProfile:
    return profile_from_json(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize("with_gain", [True, False])
def test_round_trip_is_exact(tmp_path: Path, with_gain: bool) -> None:
    p = make_profile(make_space(3))
    if not with_gain:
        p = replace(p, rank_sensitivity=None)
    path = tmp_path / "deep" / "profile.json"
    save_profile(p, path)
    q = load_profile(path)
    assert (q.units, q.formats, q.base_loss, q.source) == (p.units, p.formats, p.base_loss, p.source)
    np.testing.assert_array_equal(q.quantization_sensitivity, p.quantization_sensitivity)
    np.testing.assert_array_equal(q.quantization_kl, p.quantization_kl)
    assert (q.rank_sensitivity is None) == (not with_gain)
    assert q.quantization_se is None
    assert list(path.parent.iterdir()) == [path]
    shape = p.quantization_sensitivity.shape
    known = replace(p, quantization_se=np.arange(np.prod(shape)).reshape(shape) / 7.0)
    save_profile(known, path)
    np.testing.assert_array_equal(load_profile(path).quantization_se, known.quantization_se)


@pytest.mark.parametrize(("change", "message"), [
    ({"Gain": 1}, "Gain: Unexpected"), ({"schema_version": 2}, "schema_version is 2"), ({"units": None}, "units: "),
    ({"quantization_kl": {"a": 1}}, "float"), ({"quantization_kl": [[10**400]]}, "too large"),
    ({"base_loss": float("inf")}, "base_loss must be a finite number"),
    ({"units": ["a", "a"]}, "every unit must be named once; 'a' is named 2 times"),
    *(({key: [[value] * n] * 2}, f"{key} must hold finite numbers") for value in (1e308, -1e308, 1e101)
      for key, n in (("quantization_sensitivity", 4), ("quantization_kl", 4), ("rank_sensitivity", 8))),
    *(({"base_loss": value}, "base_loss") for value in (10**400, 1e308, -1e101))])
def test_what_is_unknown_no_number_or_named_twice_is_refused(change: dict[str, object], message: str) -> None:
    data = {**profile_to_json(make_profile(make_space(2))), **change}
    with pytest.raises(ProfileError, match=message):
        profile_from_json(data, "here")
