"""The first hour on a GPU: every part runs, on a CPU with a tiny decoder, and writes its rows."""

import json
from pathlib import Path

import pytest
import torch

from scripts.first_gpu_hour import PARTS, main
from scripts.gpu_hour.results import NOT_MEASURED
from scripts.gpu_hour.trials import TINY_TRIALS

SHORT = ["round-trip", "alternating", "grid", "gptq", "unpack"]
"""Parts of a few seconds; the lack of memory is run in ``tests/gpu``."""


@pytest.fixture(autouse=True)
def settings_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "expandable_segments:True")


def run(work: Path, *parts: str) -> dict[str, list[dict[str, object]]]:
    assert main([*parts, "--tiny", "--work", str(work)]) == 0
    found = json.loads((work / "tiny.json").read_text())["parts"]
    assert all(found[part]["done"] for part in parts)
    return {name: part["rows"] for name, part in found.items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make first-gpu-hour runs the parts there")
@pytest.mark.slow
def test_short_parts_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(tmp_path, *SHORT)
    assert all(row["float32_equal"] and row["bfloat16_equal"] for row in rows["round-trip"])
    alternating = [row["allocated_bytes"] for row in rows["alternating"]]
    assert len(alternating) == TINY_TRIALS
    assert alternating[1] == alternating[-1]
    assert [len(rows[part]) for part in ("grid", "gptq")] == [2, 4]
    capsys.readouterr()
    assert main([*SHORT, "--tiny", "--work", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{part}: done before" for part in SHORT]
    assert main(["table", "--tiny", "--work", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count(NOT_MEASURED) == len(PARTS)
    assert "| nf4 | yes |" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_long_parts_run(tmp_path: Path) -> None:
    rows = run(tmp_path, "search", "load", "steps", "repeats", "grid-plain")
    assert all(row["equal"] for row in rows["repeats"])
    assert len(rows["grid-plain"]) == 2
    assert rows["load"][0]["largest_difference_of_logits"] == 0
    assert {"PEFT QLoRA, nf4", "qra_bo, hqq8"} <= {row["what"] for row in rows["steps"]}


def test_failed_part_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    assert main(["load", "gptq", "--tiny", "--work", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "tiny.json").read_text())["parts"]
    assert (parts["load"]["done"], parts["gptq"]["done"]) == (False, True)
    assert "OutputError" in parts["load"]["problem"]
