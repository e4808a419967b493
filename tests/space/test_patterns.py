"""Patterns for PEFT: exact, complete, and read by PEFT as meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.errors import SpaceError

NAMES = [f"model.layers.{i}.{m}" for i in range(12) for m in ("self_attn.q_proj", "mlp.down_proj")]


def peft_lookup(patterns, name, default):
    """The rule of PEFT 0.21 (``peft.utils.other.get_pattern_key``), restated."""
    hits = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)]
    return hits[0] if hits else default


@given(st.lists(st.integers(0, 64), min_size=len(NAMES), max_size=len(NAMES)).filter(any),
       st.sampled_from([0.5, 1.0, 2.0, 1.25]))
def test_every_module_gets_its_own_rank_and_constant_scaling(ranks, scale):
    ranks_by_module = dict(zip(NAMES, ranks, strict=True))
    out = peft_patterns(ranks_by_module, scale)
    assert out["target_modules"] == [n for n, r in ranks_by_module.items() if r]
    assert out["r"] == max(ranks)
    assert out["lora_alpha"] == max(ranks) * scale
    for name in out["target_modules"]:
        for seen in (name, f"base_model.model.{name}"):
            assert peft_lookup(out["rank_pattern"], seen, None) == ranks_by_module[name]
            assert peft_lookup(out["alpha_pattern"], seen, None) == ranks_by_module[name] * scale


def test_keys_are_escaped_so_that_a_dot_is_a_dot():
    out = peft_patterns({"model.layers.1.q": 4, "model.layers.11.q": 8}, 2)
    assert list(out["rank_pattern"]) == [r"model\.layers\.1\.q", r"model\.layers\.11\.q"]
    assert out["alpha_pattern"] == {r"model\.layers\.1\.q": 8, r"model\.layers\.11\.q": 16}


@pytest.mark.parametrize(("ranks", "scale", "message"), [
    ({"a.b": 4}, 0, "positive number"), ({"a.b": 4}, float("nan"), "positive number"),
    ({"layers.1.q": 4, "model.layers.1.q": 8}, 2, "tail")])
def test_what_cannot_be_said_to_peft_is_refused(ranks, scale, message):
    with pytest.raises(SpaceError, match=message):
        peft_patterns(ranks, scale)
