"""A table with the real oracle, killed at moments of its own choosing by SIGKILL, ends as one that never was."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.store import Store

ROOT = Path(__file__).resolve().parents[3]
REAL = ["+model=tiny", "data=tiny", "display=none", "effort=quick", "effort.max_full_trials=6",
        "table1=short", "table1.seeds=2", "table1.key_seeds=2", "table1.lr_trials=1", "calibrate.lr_scales=[1.0]",
        "table1.rank_choices=1", "table1.amq_evaluations=4", "effort.uniform_baselines=1", "train.batch=2",
        "train.length=32", "eval.sequences=8",
        "fidelity.high=6", "fidelity.low=3", "data.max_records=64", "worker.checkpoint_seconds=0",
        "device=cpu", "table1.limits=['peak uniform:4,4']",
        "table1.methods=[qlora,adalora,loftq,qra_bo]"]


def start(out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "bench.table1", *REAL, f"out={out}"], cwd=ROOT)


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("*.jsonl"))


def rows(out: Path) -> list[dict[str, Any]]:
    table = json.loads((out / "table1.json").read_text())
    assert table["complete"]
    assert [r["why"] for r in table["rows"]] == [""] * 4
    return list(table["rows"])


@pytest.mark.slow
def test_a_killed_table_ends_as_one_that_never_was(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    total, kills = lines(whole), 2
    for k in range(kills):
        process = start(killed)
        deadline = time.monotonic() + 300
        while lines(killed) < (k + 1) * total // (kills + 1) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait() == 0
    assert rows(killed) == rows(whole)
    finished, expected = ([e["key"] for e in Store(folder / "table1.jsonl").events if e["event"] == "trial"]
                          for folder in (killed, whole))
    assert len(finished) == len(set(finished))  # nothing was trained twice
    assert sorted(finished) == sorted(expected)
