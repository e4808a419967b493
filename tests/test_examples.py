"""The examples and the docstrings' examples run."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTED = ("qra_bo.api", "qra_bo.trials", "qra_bo.memory", "qra_bo.space", "surrogates")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout


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
