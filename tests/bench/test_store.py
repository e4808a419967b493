"""The store of trials: what was written is found again, once, after a kill too."""

import json
from pathlib import Path

import pytest

from bench.store import Store, TrialStore, append_line, read_lines
from qra_bo.space import uniform
from qra_bo.trials import TrialResult, TrialSpec, TrialState

SPEC = TrialSpec(uniform(2, "nf4", 4), 8, 8, 1, 1e-3)


def result(state: TrialState, loss: float | None) -> TrialResult:
    return TrialResult(state, loss, None, ((8, loss),) if loss else (), 8, 64, 32, None, 1.5)


@pytest.mark.parametrize("left", ["", "{", '{"event": "trial", "key"'])
def test_a_cut_off_last_line_is_replaced(tmp_path: Path, left: str) -> None:
    path = tmp_path / "a" / "trials.jsonl"
    append_line(path, "first")
    path.write_bytes(path.read_bytes() + left.encode())
    assert read_lines(path) == ["first"]
    append_line(path, "second")
    assert read_lines(path) == ["first", "second"]
    path.write_text(left)
    append_line(path, "third")
    assert read_lines(path) == ["third"]


def test_results_are_made_once_and_seen_by_other_processes(tmp_path: Path) -> None:
    one, other = (Store(tmp_path / "s.jsonl") for _ in range(2))
    assert one.find("measured", "k") is None
    assert one.once("measured", "k", lambda: {"bytes": 3})["bytes"] == 3
    assert other.once("measured", "k", lambda: pytest.fail("made twice"))["bytes"] == 3
    assert other.find("scores", "k") is None


def test_trials_are_found_by_setting_and_spec(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "t.jsonl")
    store.begin("plays", {"device": "cpu"})
    store.add("plays", SPEC, result(TrialState.OK, 4.5), name="uniform")
    assert store.result("plays", SPEC) == result(TrialState.OK, 4.5)
    assert store.result("gsm8k", SPEC) is None
    (row,), (session,) = store.rows(), store.sessions()
    assert (row["name"], row["session"], TrialSpec.from_json(row)) == ("uniform", session["id"], SPEC)
    assert {"machine", "git", "device"} <= set(session)


def test_trials_that_were_lost_with_their_worker_are_missing(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "t.jsonl")
    store.add("plays", SPEC, result(TrialState.FAILED, None))
    assert store.result("plays", SPEC) is None
    store.add("plays", SPEC, result(TrialState.DIVERGED, None))
    assert store.result("plays", SPEC) == result(TrialState.DIVERGED, None)
    assert [json.loads(line)["state"] for line in read_lines(store.path)] == ["failed", "diverged"]
