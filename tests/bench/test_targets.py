"""What benchmarks conclude from their rows."""

import json
from pathlib import Path

import pytest

from bench.report import Target, publish


def test_published_results_have_the_contracts_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [Target("a", ">= 1", 2.0, True), Target("b", ">= 1", None, False, "no time")]
    path = publish("some_name", targets, [{"x": 1.5, "y": None}], ("x", "y"), threads=2, folder=tmp_path)
    content = json.loads(path.read_text())
    assert set(content) == {"name", "git", "machine", "targets", "rows"}
    assert content["targets"] == [{"what": "a", "target": ">= 1", "value": 2.0, "met": True},
                                  {"what": "b", "target": ">= 1", "value": None, "met": False, "why": "no time"}]
    assert "NOT MET: b: not measured (no time); target >= 1" in capsys.readouterr().out
