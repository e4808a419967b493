"""The starts of adapters compared: by hand, and the program on planted landscapes."""

import json
import os
from pathlib import Path

import pytest

from bench import inits


def test_a_start_is_compared_with_the_plain_one_of_its_allocation() -> None:
    rows = [{"choice": "a", "init": "kaiming", "test_losses": {1: 3.0, 2: 3.1, 3: 3.2, 4: 3.0, 5: 3.1}},
            {"choice": "a", "init": "eva", "test_losses": {1: 2.9, 2: 3.0, 3: 3.11, 4: 2.9, 5: 3.0}},
            {"choice": "b", "init": "kaiming", "test_losses": {1: 4.0, 2: 4.0, 3: 4.0, 4: 4.0, 5: 4.0}},
            {"choice": "b", "init": "eva", "test_losses": {1: 4.1, 2: 3.9, 3: 4.0, 4: 4.1, 5: 3.9}},
            {"choice": "a", "init": "pissa", "test_losses": {1: 2.0}}]
    table = inits.against_plain(rows)
    assert table[1]["mean"] == pytest.approx(-0.49 / 5)
    assert [r.get("verdict") for r in table] == [None, "better", None, "undecided", None]
    targets = {t.what.split("init=")[1].split()[0]: t for t in inits.targets_of(table)}
    assert (targets["eva"].value, targets["eva"].met) == (1.0, False)
    assert targets["pissa"].value is None


def test_a_small_run_goes_on_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    arguments = ["--inits", "eva", "--choices", "4,4", "--seeds", "2", "--work", str(tmp_path / "w"), "--out",
                 str(tmp_path), "+model=tiny", "data=tiny", "oracle=synthetic"]
    inits.main(arguments)
    rows = json.loads((tmp_path / "inits_tiny.json").read_text())["rows"]
    assert [(r["choice"], r["init"], len(r["test_losses"])) for r in rows] == [("nf4 r=4", "kaiming", 2),
                                                                              ("nf4 r=4", "eva", 2)]
    before = (tmp_path / "w" / "table1.jsonl").read_bytes().count(b'"trial"')
    inits.main(arguments)
    assert (tmp_path / "w" / "table1.jsonl").read_bytes().count(b'"trial"') == before
