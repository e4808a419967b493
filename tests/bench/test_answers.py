"""Rows of finished runs that answered the same questions."""

import json
from pathlib import Path

import pytest

from bench.pages import answers
from qra_bo.finetune.evaluation import Answer
from qra_bo.finetune.manifest import ADAPTER, ADAPTER_WEIGHTS
from qra_bo.tasks.answers import AnswerFile
from qra_bo.utils.errors import ConfigError, OutputError
from qra_bo.utils.formatting import DASH


def run(folder: Path, loss: float, right: int, scope: str = "stored") -> Path:
    """Write what is read of a run: two units, two test sequences of 10 tokens, ten answers; the base knows none."""
    chosen = {"formats": ["t2", "t3"], "ranks": [2, 4]}
    events = ({"event": "measured", "allocation": chosen, "measured_bytes": 140_000_000, "scope": scope},
              {"event": "provenance", "git": "abc"},
              {"event": "untuned", "loss": 2.0, "sequences": [[20.0, 10, 0], [20.0, 10, 1]]},
              {"event": "final", "loss": loss, "kept_step": 24, "sequences": [[10 * loss, 10, 0], [10 * loss, 10, 1]]})
    (folder / ADAPTER).mkdir(parents=True)
    (folder / ADAPTER / ADAPTER_WEIGHTS).write_bytes(b"")
    (folder / "trials.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for variant, good in (("", right), ("untuned", 0)):
        AnswerFile.of_run(folder, "sums", variant).add([
            Answer(f"q{at}", f"What is {at}?", str(at), "?", {"exact_match": float(at < good)}) for at in range(10)])
    return folder


def test_every_run_stands_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / "a", 1.0, 4), run(tmp_path / "b", 1.5, 9)]
    rows = [row for label, folder in zip("ab", runs, strict=True) for row in answers.collect(label, folder, "sums")]
    assert [(row["choice"], row["steps"], row["bits"], row["rank"]) for row in rows] == [
        ("a", 24, 2.5, 3), ("a, untuned", 0, 2.5, 3), ("b", 24, 2.5, 3), ("b, untuned", 0, 2.5, 3)]
    silent = {**rows[2], "choice": "c", "answers": []}
    monkeypatch.setattr(answers, "read", lambda _name: {"rows": [*rows, silent]})
    monkeypatch.setattr(answers, "source", lambda _name: "")
    lines = answers.table("sums").splitlines()[2:]
    assert ["4 of 10" in lines[0], "0 of 10" in lines[1], "9 of 10" in lines[2]] == [True] * 3
    assert "+0.500" in lines[2]
    assert "+50" in lines[2]
    assert lines[4].count(DASH) == 3
    page = answers.beside(rows[2])
    assert page.count("*Wanted:*") == 10
    assert page.index("What is 8?") < page.index("## Wrong") < page.index("What is 9?")


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", 1.0, 4)
    (folder / ADAPTER / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(OutputError, match="finished"):
        answers.collect("a", folder, "sums")


def test_bytes_of_another_scope_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scope peak; rows need those of memory\.scope=stored"):
        answers.collect("a", run(tmp_path / "a", 1.0, 4, "peak"), "sums")
