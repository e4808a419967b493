"""Answers are kept for one adapter and read again whole; paired shares have the intervals of their sources."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qra_bo.finetune.evaluation import Answer
from qra_bo.tasks.answers import AnswerFile, interval, paired
from qra_bo.utils.errors import OutputError


def answers(right: list[int], metric: str = "acc") -> list[Answer]:
    metrics = (metric, "acc_norm") if metric == "acc" else (metric,)
    return [Answer(f"q{i}", "p", "t", "a", dict.fromkeys(metrics, float(r))) for i, r in enumerate(right)]


def make_run(folder: Path, weights: bytes = b"1") -> Path:
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_a_pair_is_counted_as_by_mcnemar() -> None:
    these, others = ([*first, *[1] * 30, *[0] * 54] for first in ([1] * 12 + [0] * 4, [0] * 12 + [1] * 4))
    found = paired(answers(these), answers(others), "acc")
    assert (found.questions, found.only_this, found.only_other) == (100, 12, 4)
    assert (found.value, found.other, found.mean) == pytest.approx((.42, .34, .08))
    assert found.p == pytest.approx(2 * sum(math.comb(16, k) for k in range(5)) / 2**16)
    half = 1.959964 * math.sqrt(17 - 64 / 102) / 102
    assert (found.low, found.high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-6)


def test_only_questions_of_both_count() -> None:
    assert paired(answers([1, 1, 1]), answers([0]), "acc").questions == 1
    none = paired(answers([1]), [], "acc")
    assert none.questions == 0
    assert math.isnan(none.mean)
    assert paired(answers([1]), answers([1], "exact_match"), "acc").questions == 0


def test_a_share_has_wilsons_interval() -> None:
    assert interval(0.0, 10) == pytest.approx((0.0, 1.959964**2 / (10 + 1.959964**2)), abs=1e-6)


def test_answers_are_read_again_and_a_cut_line_is_asked_again(tmp_path: Path) -> None:
    kept = AnswerFile.of_run(make_run(tmp_path), "q")
    kept.add(answers([1, 0]))
    kept.add(answers([1, 0, 1])[2:])
    with kept.path.open("a") as file:
        file.write('{"question": "q3", "pro')
    again = AnswerFile.of_run(tmp_path, "q")
    assert (again.answers, again.known) == (answers([1, 0, 1]), {"q0", "q1", "q2"})
    again.add(answers([0, 0, 0, 1])[3:])  # the half line is gone, nothing is lost
    assert AnswerFile.of_run(tmp_path, "q").answers == answers([1, 0, 1, 1])
    assert AnswerFile.of_run(tmp_path, "q", "untuned").answers == []
    assert AnswerFile.of_run(tmp_path, "q", "untuned").path != AnswerFile.of_run(tmp_path, "q-untuned").path


def test_line_ends_of_other_scripts_are_text(tmp_path: Path) -> None:
    odd = [Answer("q", "a\u2028b", "t", "c\x85d", {"exact_match": 1.0})]
    AnswerFile.of_run(make_run(tmp_path), "q").add(odd)
    assert AnswerFile.of_run(tmp_path, "q").answers == odd


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff", b"3", b'{"question": 1e999}'])
def test_hostile_lines_are_passed_over(line: bytes, tmp_path: Path) -> None:
    kept = AnswerFile.of_run(make_run(tmp_path), "q")
    kept.add(answers([1]))
    kept.path.write_bytes(kept.path.read_bytes() + line + b"\n")
    assert AnswerFile.of_run(tmp_path, "q").answers == answers([1])


@pytest.mark.parametrize("change", [{"right": "yes"}, {"right": {"acc": "yes"}}, {"right": {}}, {"right": {"foo": 1}},
                                    {"answer": 3}, {"more": 1}])
def test_lines_that_no_run_writes_are_passed_over(change: dict[str, Any], tmp_path: Path) -> None:
    kept = AnswerFile.of_run(make_run(tmp_path), "q")
    kept.add(answers([1]))
    lines = kept.path.read_text().splitlines()
    kept.path.write_text("\n".join([*lines, json.dumps({**json.loads(lines[1]), **change})]))
    assert AnswerFile.of_run(tmp_path, "q").answers == answers([1])


def test_answers_of_another_adapter_are_written_over(tmp_path: Path) -> None:
    AnswerFile.of_run(make_run(tmp_path), "q").add(answers([1, 1]))
    new = AnswerFile.of_run(make_run(tmp_path, b"2"), "q")
    assert new.answers == []
    new.add(answers([0]))
    assert AnswerFile.of_run(tmp_path, "q").answers == answers([0])
    with pytest.raises(OutputError):
        AnswerFile.of_run(tmp_path / "none", "q")
