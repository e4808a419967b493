"""The comparison of searches on a real oracle: differences by hand, and its program on planted landscapes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.search import real
from qra_bo.study.journal import read_journal


def row(method: str, seed: int, losses: dict[str, float | None]) -> dict[str, Any]:
    return {"method": method, "seed": seed, "test_losses": losses}


def trials(path: Path) -> int:
    return sum(e["event"] == "trial" for e in read_journal(path).events)


def test_differences_are_paired_by_training_seed_and_averaged_by_search() -> None:
    rows = [row("qra_bo", 0, {"1": 3.0, "2": 3.1}), row("published", 0, {"1": 3.2, "2": None}),
            row("qra_bo", 1, {"5": 4.0, "6": 4.2}), row("published", 1, {"5": 4.1, "6": 4.5}),
            row("published", 2, {"9": 1.0})]
    assert real.by_search(rows, "published") == pytest.approx([-0.2, -0.2])
    rows[2]["test_losses"]["6"] = 4.6
    assert real.by_search(rows, "published") == pytest.approx([-0.2, 0.0])
    found = real.comparison(rows)
    assert [r["qra_bo_against"] for r in found] == ["published"]
    assert found[0]["mean"] == pytest.approx(-0.1)
    assert (found[0]["searches"], found[0]["wins"]) == (2, 1)
    half = 12.7062 * 0.1  # t of one degree of freedom times the standard error of (-0.2, 0)
    assert found[0]["low"] == pytest.approx(-0.1 - half, abs=1e-4)
    assert real.comparison(rows[:2])[0]["low"] is None


def test_what_was_searched_too_seldom_is_not_met() -> None:
    few = [row(name, seed, {"1": loss}) for seed in range(2) for name, loss in (("qra_bo", 1.0), ("published", 2.0))]
    assert all(t.value is None and "of 3 searches" in t.why for t in real.targets_of(few))
    enough = [*few, row("qra_bo", 2, {"1": 1.0}), row("published", 2, {"1": 2.0})]
    met = {t.what.split(" less that of ")[1].split(",")[0]: t for t in real.targets_of(enough)}
    assert met["published"].met
    assert met["published"].value == -1.0
    assert not met["sequential bits"].met


def test_a_seed_is_searched_by_every_method_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    arguments = ["--seeds", "0", "--work", str(tmp_path / "w"), "--out", str(tmp_path), "+model=tiny", "data=tiny",
                 "oracle=synthetic", "effort=quick", "effort.max_full_trials=12"]
    real.main(arguments)
    found = json.loads((tmp_path / "search_real.json").read_text())
    rows = {r["method"]: r for r in found["rows"] if "method" in r}
    assert set(rows) == set(real.METHODS)
    assert all(len(r["test_losses"]) == real.FINALS and r["oracle"] == "synthetic" for r in rows.values())
    assert not any(t["met"] for t in found["targets"])
    journals = sorted((tmp_path / "w" / "seed-0").rglob("*.jsonl"))
    before = [trials(path) for path in journals]
    real.main(["--methods", "qra_bo", "published", *arguments])
    assert {r["method"] for r in json.loads((tmp_path / "search_real.json").read_text())["rows"] if "method" in r} == \
        set(real.METHODS)
    assert all(before)
    real.main(arguments)
    assert [trials(path) for path in journals] == before
    assert json.loads((tmp_path / "search_real.json").read_text())["rows"] == found["rows"]
