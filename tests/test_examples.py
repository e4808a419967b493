"""The examples and the docstrings' examples run."""

import doctest
import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qra_bo.report import load_run
from tests.executors import work_in_this_process
from tests.report.fixtures import make_events, write_run

ROOT = Path(__file__).resolve().parent.parent
WITH_ARGUMENTS = ROOT / "examples" / "journal_to_optuna.py"
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {WITH_ARGUMENTS})
DOCUMENTED = ("qra_bo.api", "qra_bo.trials", "qra_bo.memory", "qra_bo.space", "surrogates")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      capsys: pytest.CaptureFixture[str]) -> None:
    work_in_this_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_an_example_runs_as_a_script(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / "plan.py"], cwd=tmp_path, capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "largest uniform ranks" in done.stdout


@pytest.mark.filterwarnings("ignore::Warning:optuna", "ignore::Warning:sqlalchemy")
def test_journal_is_copied_to_optuna_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    events, storage = make_events(), f"sqlite:///{tmp_path / 'optuna.sqlite3'}"
    for n in (len(events) // 2, len(events), len(events)):  # of a run that goes on, of the whole run, and again
        monkeypatch.setattr(sys, "argv", ["", str(write_run(tmp_path / "run", events[:n], anew=True)), storage])
        runpy.run_path(str(WITH_ARGUMENTS), run_name="__main__")
    run = load_run(tmp_path / "run")
    study = optuna.load_study(study_name="run", storage=storage)
    states = [t.state.name for t in study.trials]
    assert states.count("COMPLETE") == len(run.study.points)
    assert states.count("FAIL") == sum(not e.ok for e in run.study.trials)
    assert states.count("PRUNED") == sum(e.ok and e.fidelity == "low" for e in run.study.trials)
    best = run.study.incumbent
    assert study.best_value == best.loss
    assert [study.best_params[f"{u} format"] for u in run.header.units] == list(best.allocation.formats)
    assert [study.best_params[f"{u} rank"] for u in run.header.units] == list(best.allocation.ranks)
    assert study.best_trial.user_attrs["predicted_bytes"] == best.predicted_bytes


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_a_script(tmp_path: Path) -> None:
    """Without ``if __name__ == "__main__"``, although it trains in a worker process."""
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(found))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "import qra_bo" in found[0]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_examples_hold(name: str) -> None:
    module = importlib.import_module(name)
    modules = [module, *(importlib.import_module(found.name)
                         for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."))]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0
