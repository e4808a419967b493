"""Files stay small, and planning memory loads nothing heavy; import contracts are checked by import-linter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("qra_bo.space", "qra_bo.space.specs", "qra_bo.trials", "qra_bo.utils.errors", "qra_bo.searchers.base",
         "qra_bo.memory.formats", "qra_bo.memory.model", "qra_bo.memory.budget", "qra_bo.config.schema",
         "qra_bo.config.compose", "qra_bo.config.rules", "qra_bo.pipeline.build", "qra_bo.tasks.memory")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "matplotlib", "pymoo")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_the_way_to_a_memory_plan_loads_nothing_heavy() -> None:
    code = (f"import sys, importlib\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("path", [*files("qra_bo"), *files("surrogates"), *files("conf")],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
