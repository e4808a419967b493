"""Allocations: identity, codec and refusal."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.space import Allocation, uniform
from qra_bo.utils.errors import SpaceError

CHOICES = st.lists(st.tuples(st.sampled_from(["nf4", "int8", "hqq2-g32", "fp16"]), st.integers(0, 64)), min_size=1,
                   max_size=12)


@given(CHOICES)
def test_json_round_trip_keeps_identity(choices: list[tuple[str, int]]) -> None:
    a = Allocation(*zip(*choices, strict=True))  # type: ignore[arg-type]
    b = Allocation.from_json(json.loads(json.dumps(a.to_json())))
    assert (a, hash(a), a.fingerprint, len(a)) == (b, hash(b), b.fingerprint, len(choices))


def test_the_fingerprint_is_the_same_for_ever() -> None:
    # sha256 of '[["nf4","int8"],[4,0]]': a release that changes it would lose every journal
    assert Allocation(("nf4", "int8"), (4, 0)).fingerprint == "bc51feff65e87883"


def test_every_choice_counts_in_the_fingerprint() -> None:
    variants = [uniform(3, "nf4", 4), uniform(3, "nf4", 8), uniform(3, "int8", 4), uniform(2, "nf4", 4),
                Allocation(("nf4", "nf4", "nf4"), (4, 4, 8)), Allocation(("nf4", "nf4", "nf4"), (8, 4, 4))]
    assert len({a.fingerprint for a in variants}) == len(variants)


@pytest.mark.parametrize(("formats", "ranks", "match"), [
    ((), (), "0 formats and 0 ranks"), (("nf4",), (1, 2), "1 formats and 2 ranks"), (("nf4",), (-1,), r"\[-1\]"),
    (("nf4",), (1.5,), r"\[1.5\]"), (("nf4",), (True,), "at least 0")])
def test_malformed_allocations_are_refused(formats: Any, ranks: Any, match: str) -> None:
    with pytest.raises(SpaceError, match=match):
        Allocation(formats, ranks)


@pytest.mark.parametrize("data", [{}, {"formats": ["nf4"]}, {"formats": "nf4", "ranks": [1]},
                                  {"formats": [4], "ranks": [1]}, {"formats": ["nf4"], "ranks": {"0": 1}}])
def test_malformed_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(SpaceError, match="needs the lists"):
        Allocation.from_json(data)
