"""The comparison of efforts on the real oracle: shares by hand, and its program on planted landscapes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.search import real_efforts
from bench.search.real_efforts import FULL
from qra_bo.study.journal import read_journal


def row(limit: str, effort: str, seed: int, loss: float, uniform: float | None = 2.0) -> dict[str, Any]:
    found = {"limit": limit, "effort": effort, "seed": seed, "test_losses": {"1": loss, "2": loss + 0.1}}
    return found if uniform is None else {**found, "uniform_losses": {"1": uniform, "2": uniform + 0.1}}


def test_gains_are_paired_and_the_prediction_takes_the_uniform_choice_of_a_search() -> None:
    rows = [row("a", "instant", 0, 1.9, None), row("b", "instant", 0, 1.9, None), row("a", "quick", 0, 1.8)]
    found = real_efforts.gains(rows)
    assert [(r["limit"], r["effort"]) for r in found] == [("a", "instant"), ("a", "quick")]
    assert [r["difference"] for r in found] == pytest.approx([-0.1, -0.2])


def test_shares_are_of_what_the_full_search_gains_with_the_same_seeds() -> None:
    rows = real_efforts.gains([
        row("a", "instant", 0, 1.9, None), row("a", "quick", 0, 1.9), row("a", "quick", 1, 1.7),
        row("a", "quick", 2, 1.0), row("a", FULL, 0, 1.8), row("a", FULL, 1, 1.6)])
    for name, gained in (("quick", 0.1 + 0.3), ("instant", 0.1 + 0.1)):
        share, known, searches = real_efforts.share_of(rows, name)
        assert (share, searches) == (pytest.approx(gained / (0.2 + 0.4)), 2)
        assert known is not None
        assert (known.low, known.high) == (pytest.approx(share), pytest.approx(share))  # both seeds say the same
    assert real_efforts.share_of(rows[:4], "quick") == (None, None, 0)
    lost = real_efforts.gains([row("a", "quick", 0, 2.2), row("a", FULL, 0, 2.1)])
    assert real_efforts.share_of(lost, "quick") == (None, None, 1)
    assert not any(t.met for t in real_efforts.targets_of(rows))  # 2 of 6 searches


def test_every_effort_is_searched_trained_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    arguments = ["--limits", "uniform:4,4", "--seeds", "0", "--efforts", "instant", "quick", "--work",
                 str(tmp_path / "w"), "--out", str(tmp_path), "oracle=synthetic", "+model=tiny", "data=tiny",
                 "quantizer.rounding=rtn", "bits=[2,3,4,8]", "calibrate.lr_scales=[1.0]"]
    real_efforts.main(arguments)
    found = json.loads((tmp_path / "search_efforts_real.json").read_text())
    assert [r["effort"] for r in found["rows"]] == ["instant", "quick"]
    assert all(len(r["test_losses"]) == real_efforts.FINALS for r in found["rows"])
    assert found["rows"][0]["equivalents"] < found["rows"][1]["equivalents"] <= 13
    journals = sorted((tmp_path / "w").rglob("*.jsonl"))
    before = [len(read_journal(path).events) for path in journals]
    real_efforts.main(arguments)
    assert [len(read_journal(path).events) for path in journals] == before
