"""``task=memory``: what it prints, and that it needs neither weights nor torch; and what a search prints without."""

import json
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from qra_bo import runs
from qra_bo.cli.app import main
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.memory.budget import uniform_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.pricing import make_memory, make_plan
from qra_bo.report import html
from qra_bo.tasks.memory import plan_lines
from qra_bo.utils import device as device_module
from qra_bo.utils.device import planned_device
from qra_bo.utils.process import tolerant
from tests.report.fixtures import make_events, write_run

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_shows_what_the_model_predicts() -> None:
    config = load_config(["task=memory", "+model=llama2_7b", "budget=[10GB,uniform:4,16]", "device=cpu",
                          "dtype=bfloat16"])
    spec = make_spec(config)
    memory, space = make_memory(config, spec, "cpu"), make_space(config, spec)
    nf4 = uniform_bytes(memory, space, parse_format("nf4"), 16)
    plan = make_plan(config)
    assert {b.text: b.size for b in plan.budgets} == {"10GB": 10 * 10**9, "uniform:4,16": nf4}
    assert plan.budgets[1].ranks["nf4"] == 16
    lines = plan_lines(plan)
    assert lines[0].startswith("10.00 GB: Nothing binds: ")
    assert any(line.startswith("llama2_7b: 6,738.4 M parameters") for line in lines)
    (row,) = [line for line in lines if line.split()[:2] == ["nf4", "4"]]
    assert f"{nf4 / 1e9:.2f}*" in row.split()


@pytest.mark.parametrize("there", [0, 1])
def test_either_file_of_the_driver_tells_of_a_gpu(there: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/usr/lib/wsl/lib/libcuda.so.1") in device_module.DRIVER
    files = (tmp_path / "version", tmp_path / "libcuda.so.1")
    monkeypatch.setattr(device_module, "DRIVER", files)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert planned_device("auto") == "cpu"
    files[there].touch()
    assert planned_device("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert planned_device("auto") == "cpu"


def test_json_stands_alone_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["task=memory", "+model=tiny", "budget=[1GB,uniform:4,4]", "memory.format=json", "device=cpu"]) == 0
    captured = capfd.readouterr()
    data = json.loads(captured.out)
    assert [b["text"] for b in data["budgets"]] == ["1GB", "uniform:4,4"]
    assert captured.err == ""
    assert main(["task=memory", "+model=tiny", "budget=10B", "memory.format=json"]) == 2
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert (found["fits"], found["next"]) == (False, None)
    assert captured.err.startswith("qra_bo: a budget of 10 bytes")


def test_the_command_after_a_plan_in_which_nothing_fits_is_of_one_that_fits(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["task=memory", "+model=smollm2_135m", "budget=280MB", "memory.format=json", "device=cpu"]) == 2
    words = shlex.split(json.loads(capfd.readouterr().out)["next"])
    assert "train.checkpointing=true" in words
    assert main(words[3:]) == 0


@pytest.mark.parametrize(("words", "first"), [
    (["budget=36MB", "memory.scope=stored", "final.steps=8"], "task=finetune"), (["effort=quick"], "effort=quick"),
    (["budget=36MB", "memory.scope=stored", "final.steps=100000"], "effort=thorough"),
    (["final.max_steps=null", "data=alpaca"], "effort=normal"), (["budget=1GB", "effort=quick"], "task=finetune"),
    (["gpu=12GB"], "task=finetune")])
def test_the_time_of_what_is_recommended_comes_first(words: list[str], first: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=memory", "device=cpu", *words]) == 0
    found = re.search(r"Time of (\S+?)[, ]", " ".join(capsys.readouterr().out.split()))
    assert found[1] == first


@pytest.mark.parametrize("words", [
    ["task=memory", "+model=tiny", "budget=1GB", "memory.format=json"], ["task=memory", "+model=tiny", "budget=1GB"],
    ["task=memory", "+model=tiny", "gpu=8GB"], ["task=memory", "+model=tiny", "budget=[1GB,2GB]", "memory.format=json"],
    ["task=report", "out={run}"], ["list", "{run}"], ["list", "{run}/.."], ["show", "{run}"]])
def test_an_answer_that_a_full_disk_cuts_off_is_an_error(
        words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", make_events())
    monkeypatch.setattr(html, "PLOTS", {})
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", tolerant(full))
        assert (runs.main if "=" not in words[0] else main)([word.format(run=run) for word in words]) == 2
        with suppress(OSError):
            full.close()
    assert capfd.readouterr().err.count("standard output") == 1


def test_memory_task_loads_no_torch() -> None:
    code = ("import sys; from qra_bo.cli.app import main; "
            "status = main(['task=memory', '+model=llama2_7b', 'budget=10GB', 'device=cpu']); "
            "print('heavy:', [m for m in ('torch', 'transformers', 'scipy', 'botorch', 'pymoo', 'matplotlib') "
            "if m in sys.modules]); sys.exit(status)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
