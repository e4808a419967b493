"""The ablations: every variant is a valid search, regrets by hand, and what is not measured is not met."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench import ablations
from bench.methods import METHODS
from bench.published import scaled_autoqra
from qra_bo.config import load_config
from qra_bo.study.journal import read_journal


def row(variant: str, seed: int, regret: float | None) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "regret": 1.0, "proposed_regret": regret}


def test_variants_differ_from_the_full_method_in_what_they_say() -> None:
    full = scaled_autoqra(load_config(["oracle=synthetic"]))
    params = {name: v.params(full) for name, v in ablations.VARIANTS.items()}
    assert params["full"] == full
    assert params["no_stage_1"] == {**full, "share": 0.0}
    assert params["no_stage_2"]["share"] == 1.0
    assert params["no_warm_start"]["first"] == {**full["first"], "warm": False}
    assert params["no_screening"]["first"] == {**full["first"], "screening": False}
    named = {v.method for v in ablations.VARIANTS.values()} - {ablations.UNIFORM_ONLY}
    assert all((METHODS / f"{name}.yaml").exists() for name in named)
    config = load_config(["oracle=synthetic", "budget=uniform:4,16"])
    assert ablations.VARIANTS["bits_only"].changes(config) == {"ranks": (16,)}
    assert ablations.VARIANTS["ranks_only"].changes(config) == {"bits": (4,)}


def test_targets_compare_medians() -> None:
    rows = [row("best_uniform", s, 1.0) for s in range(3)] + [row("full", s, r) for s, r in enumerate((.2, .9, .4))]
    rows += [row("no_stage_2", s, r) for s, r in enumerate((.3, .5, 1.2))] + [row("qra_bo", 0, 1.1)]
    rows += [row("random", 0, None)]
    targets = {t.what.split()[3] if t.what.startswith("median regret") else t.what: t
               for t in ablations.targets_of(rows)}
    assert (targets["full"].value, targets["full"].met) == (.4, True)
    assert (targets["no_stage_2"].value, targets["no_stage_2"].met) == (.5, True)
    assert (targets["qra_bo"].value, targets["qra_bo"].met) == (1.1, False)
    assert (targets["random"].value, targets["random"].met) == (None, False)


def test_variants_of_one_seed_are_compared_over_its_training_seeds() -> None:
    rows: list[dict[str, Any]] = [
        {"variant": "best_uniform", "test_losses": {1: 4.0, 2: 4.2}, "proposed_losses": None},
        {"variant": "full", "test_losses": {1: 4.0, 2: 4.2}, "proposed_losses": {1: 3.9, 2: 4.1}},
        {"variant": "qra_bo", "test_losses": {1: 3.8, 2: 3.9}, "proposed_losses": {1: 3.8, 2: 3.9}},
        {"variant": "random", "test_losses": {1: 4.0, 2: 4.2}, "proposed_losses": {1: 3.9, 2: float("inf")}}]
    ablations.against(rows)
    uniform, full, ours, random = rows
    assert uniform["minus_uniform"] is uniform["proposed_minus_full"] is full["proposed_minus_full"] is None
    assert (full["minus_uniform"]["mean"], ours["minus_uniform"]["mean"]) == pytest.approx((0.0, -0.25))
    assert ours["minus_uniform"]["low"] < -0.3
    assert ours["minus_uniform"]["high"] > -0.2
    assert ours["proposed_minus_full"]["mean"] == pytest.approx(-0.15)
    assert random["proposed_minus_full"] is None
    assert random["minus_uniform"]["mean"] == 0.0


def test_a_small_run_writes_labelled_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    ablations.main(["--seeds", "0", "--variants", "best_uniform", "random", "bits_only", "--work",
                    str(tmp_path / "w"), "--out", str(tmp_path), "+model=tiny", "effort=quick", "data=tiny"])
    found = json.loads((tmp_path / "ablations.json").read_text())
    rows = [r for r in found["rows"] if "test_loss" in r]
    assert {r["oracle"] for r in rows} == {"synthetic"}
    assert [r["regret"] for r in rows if r["variant"] == "best_uniform"] == [1.0]
    assert all(r["regret"] >= 0 for r in rows)
    assert all(r["proposed_regret"] is None or r["proposed_regret"] >= 0 for r in rows)
    assert next(r["proposed_regret"] for r in rows if r["variant"] == "random") is not None


@pytest.mark.parametrize(("variant", "bits", "ranks"), [("ranks_only", {4}, None), ("bits_only", None, {16})])
def test_what_a_variant_leaves_alone_is_the_budget_s_in_all_that_it_proposes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, bits: set[int] | None,
        ranks: set[int] | None) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    ablations.main(["--seeds", "0", "--variants", variant, "--work", str(tmp_path / "w"), "--out",
                    str(tmp_path), "+model=tiny", "effort=quick", "effort.max_full_trials=20", "data=tiny"])
    trials, = (tmp_path / "w").glob(f"*/searches/{variant}-*/trials.jsonl")
    events = [e for e in read_journal(trials).events if e["event"] == "trial"]
    proposed = [e for e in events if e["stage"] in ("evolution", "trust_region")]
    assert len(proposed) > 5
    assert bits is None or {b for e in proposed for b in e["bits"]} == bits
    assert ranks is None or {r for e in proposed for r in e["ranks"]} == ranks
