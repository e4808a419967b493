"""Files stay small, and planning memory loads nothing heavy; import-linter checks the order of the packages."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("qra_bo.api", "qra_bo.space.decoder", "qra_bo.trials", "qra_bo.searchers.base", "qra_bo.memory",
         "qra_bo.config.schema", "qra_bo.config.compose", "qra_bo.config.rules", "qra_bo.utils.files",
         "qra_bo.pipeline.executors", "qra_bo.tasks.memory")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "matplotlib", "pymoo", "scipy")


def test_planning_memory_loads_nothing_heavy() -> None:
    code = (f"import sys, importlib\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_files_stay_small() -> None:
    files = (path for package in ("qra_bo", "surrogates") for path in (ROOT / package).rglob("*.py"))
    assert [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 350] == []
