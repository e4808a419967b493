"""``task=memory``: what it prints, and that it needs neither weights nor torch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qra_bo.build import make_memory, make_space, make_spec
from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.memory.budget import format_size, uniform_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.tasks.memory import largest_rank, make_plan, plan_lines, planned_device

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_table_shows_what_the_model_predicts() -> None:
    config = load_config(["task=memory", "+model=llama2_7b", "budget=[10GB,uniform:4,16]", "device=cpu"])
    plan = make_plan(config)
    nf4 = uniform_bytes(plan.memory, plan.space, parse_format("nf4"), 16)
    assert plan.budgets == {"10GB": 10 * 10**9, "uniform:4,16": nf4}
    lines = plan_lines(config)
    assert lines[0].startswith("llama2_7b: 6,738 M parameters, 32 units, peak memory of training on cpu")
    (row,) = [line for line in lines if line.split()[:2] == ["nf4", "4"]]
    assert f"{nf4 / 1e9:.2f}*" in row.split()
    assert any(line.startswith("Budget 10.00 GB (10GB): largest uniform rank hqq2 ") for line in lines)
    assert any(line.startswith(f"Budget {format_size(nf4)} (uniform:4,16)") and "nf4 16" in line for line in lines)


@pytest.mark.parametrize("fmt", ["hqq2", "nf4", "int8"])
def test_the_largest_rank_fits_and_the_next_does_not(fmt: str) -> None:
    config = load_config(["task=memory", "+model=smollm2_135m", "device=cpu"])
    spec = make_spec(config)
    memory, space, chosen = make_memory(config, spec, "cpu"), make_space(config, spec), parse_format(fmt)
    for rank in (1, 7, 100):
        budget = uniform_bytes(memory, space, chosen, rank)
        assert largest_rank(memory, space, chosen, budget) == rank
        assert largest_rank(memory, space, chosen, budget - 1) == rank - 1
    assert largest_rank(memory, space, chosen, 10**15) == 192


def test_device_auto_is_told_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned_device(load_config(["task=memory", "device=cuda:3"])) == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert planned_device(load_config(["task=memory"])) == "cpu"


def test_auto_takes_what_is_free_less_the_headroom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.tasks.memory.free_bytes", lambda device: 3 * 10**9)
    config = load_config(["task=memory", "+model=tiny", "budget=auto", "memory.headroom=1GB", "device=cpu"])
    assert make_plan(config).budgets == {"auto": 2 * 10**9}


def test_a_budget_that_nothing_fits_still_shows_the_plan(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["task=memory", "+model=llama2_7b", "budget=10"]) == 2
    captured = capfd.readouterr()
    assert "no uniform choice fits" in captured.out
    assert "a budget of 10 bytes (a bare number means bytes) is below the smallest allocation" in captured.err


def test_it_starts_at_once_and_loads_no_torch() -> None:
    code = ("import sys; from qra_bo.cli.app import main; "
            "status = main(['task=memory', '+model=llama2_7b', 'budget=10GB']); "
            "print('heavy:', [m for m in ('torch', 'transformers', 'scipy') if m in sys.modules]); sys.exit(status)")
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "heavy: []" in result.stdout
    assert time.monotonic() - start < 20  # measured: 0.6 s; the bound only catches a heavy import on a busy machine
