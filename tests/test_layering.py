"""Files stay small, and planning memory loads nothing heavy; import-linter checks the order of the packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("qra_bo.api", "qra_bo.space.decoder", "qra_bo.trials", "qra_bo.searchers.base", "qra_bo.memory",
         "qra_bo.config.schema", "qra_bo.config.compose", "qra_bo.config.rules", "qra_bo.utils.files",
         "qra_bo.pipeline.executors", "qra_bo.tasks.memory")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "matplotlib", "pymoo", "scipy")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_planning_memory_loads_nothing_heavy() -> None:
    code = (f"import sys, importlib\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("path", [*files("qra_bo"), *files("surrogates"), *files("conf")],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
