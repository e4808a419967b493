"""Data flows one way: every import of the packages is read and held to the order of the architecture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("errors", "space", "records", "memory", "sensitivity", "searcher", "surrogates", ("acquisition", "evolution"),
          "oracle", "study", ("export", "report"), "top")
"""From the bottom up; modules of one layer that share a tuple may import one another."""
LEAVES = {"qra_bo.device": "errors", "qra_bo.failures": "errors", "qra_bo.files": "errors", "qra_bo.priors": "errors",
          "qra_bo.redact": "errors",
          "qra_bo.registry": "errors", "qra_bo.loading": "oracle", "qra_bo.foreign": "oracle"}
"""Modules that need less than their package: they may be imported as if they stood in that layer."""
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in ([layer] if isinstance(layer, str) else layer)}
LIGHT = ("qra_bo.space", "qra_bo.space.specs", "qra_bo.records", "qra_bo.errors", "qra_bo.searcher",
         "qra_bo.memory.formats", "qra_bo.memory.model", "qra_bo.memory.budget", "qra_bo.config",
         "qra_bo.cli.compose", "qra_bo.validate", "qra_bo.build", "qra_bo.tasks.memory")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "matplotlib", "pymoo")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer_of(module: str) -> str | None:
    """Layer of a dotted module name; ``None`` outside the packages."""
    parts = module.split(".")
    for leaf, layer in LEAVES.items():
        if module == leaf or module.startswith(f"{leaf}."):
            return layer
    if parts[0] == "surrogates":
        return "surrogates"
    if parts[0] != "qra_bo" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in LEVEL else None if parts[1] == "__version__" else "top"


@pytest.mark.parametrize("path", files("qra_bo"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upward(path: Path) -> None:
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None or path == ROOT / "qra_bo" / "__init__.py":
        return
    for line, module in imports(path):
        other = layer_of(module)
        if other is not None:
            assert LEVEL[other] <= LEVEL[own], f"{path}:{line}: {own} must not import {module}"


@pytest.mark.parametrize("path", files("surrogates"), ids=lambda p: str(p.relative_to(ROOT)))
def test_surrogates_know_nothing_of_qra_bo(path: Path) -> None:
    for line, module in imports(path):
        assert not module.startswith(("qra_bo", "conf")), f"{path}:{line}: the leaf package imports {module}"


def test_oracles_do_not_know_the_searchers() -> None:
    for path in files("qra_bo/oracle"):
        for line, module in imports(path):
            assert not module.startswith(("qra_bo.acquisition", "qra_bo.evolution", "surrogates")), f"{path}:{line}"


def test_only_the_study_calls_oracles() -> None:
    """Searchers learn through ``tell`` alone: nothing below the study names an oracle's ``evaluate``."""
    for package in ("acquisition", "evolution"):
        for path in files(f"qra_bo/{package}"):
            assert not any(m.startswith("qra_bo.oracle") for _, m in imports(path)), path


def test_the_way_to_a_memory_plan_loads_nothing_heavy() -> None:
    code = (f"import sys, importlib\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
            f"print([name for name in {HEAVY!r} if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("path", [*files("qra_bo"), *files("surrogates"), *files("conf")],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
