"""The paper's first backbone without network, weights or GPU: a dry run of the whole table."""

import os
from pathlib import Path

import pytest

from bench.table1.load import load_table
from bench.table1.methods import ROWS
from bench.table1.run import run_table

PAPER = ["data=alpaca", "profile=paper"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a dry run must not open a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def test_a_dry_run_makes_the_whole_table(tmp_path: Path) -> None:
    config = load_table(["+model=llama3_1_8b", "table1=paper", "oracle=synthetic", "effort=quick", *PAPER,
                          "effort.max_full_trials=6", "effort.uniform_baselines=1", "table1.amq_evaluations=4",
                          "display=none", "table1.rank_choices=1", "table1.seeds=2", "table1.key_seeds=2",
                          "calibrate.lr_scales=[1.0]", "table1.lr_trials=1", "table1.limits=['peak uniform:4,16 <=4',"
                          "'free for qra_bo',"
                          "'peak uniform:4,16 for qra_bo_finer_gptq,best_uniform_finer_gptq']",
                          f"out={tmp_path / 't'}"])
    table = run_table(config).table
    assert table["complete"]
    assert {r["method"] for r in table["rows"]} == set(ROWS) - {"qlora_published"}  # in 16 bits it is qlora
    made = [r for r in table["rows"] if not r["method"].endswith("_gptq")]  # those need real weights, and say so
    assert all(r["why"] for r in table["rows"] if r not in made)
    assert all(r["why"] == "" and r["avg_bits"] <= 4 for r in made if r["limit"] == "peak uniform:4,16 <=4")
    assert table["oracle"] == "synthetic"
    assert table["fidelity"] == "proxy"
