"""Commands of the pages on tables of real trials: overrides run as they are given, modules are there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.search.own import rehearsal
from qra_bo.cli.app import main
from qra_bo.config import load_config

ROOT = Path(__file__).resolve().parents[2]
RESEARCH = ROOT / "docs" / "research"
TEXT = "\n".join((RESEARCH / name).read_text(encoding="utf-8") for name in ("tables.md", "compare.md"))
ARGUMENTS = sorted(set(re.findall(r"(?:`|python -m qra_bo )(--config-dir bench/conf [^`|\n]+)", TEXT)))
TABLE = ["--config-dir", str(ROOT / "bench/conf"), "oracle=emulator", f"oracle.table={ROOT / 'bench/data/plays'}"]
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
MODULES = sorted(set(re.findall(r"python -m (bench[\w.]*)", TEXT)))


def test_searches_on_a_table_compose_and_one_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ARGUMENTS) >= 3
    monkeypatch.chdir(ROOT)
    for arguments in ARGUMENTS:
        _, folder, *overrides = arguments.split()
        wanted = "emulator" if any("oracle=" in text for text in overrides) else "finetune"
        assert load_config(overrides, folder).oracle.name == wanted
    assert main([*TABLE, f"out={tmp_path / 'run'}", "display=none", "effort=quick", "effort.max_full_trials=8"]) == 0
    assert json.loads((tmp_path / "run" / "best.json").read_text())["oracle"] == "emulator"


def test_searches_of_the_page_propose_what_fits() -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    for code in FENCE.findall((RESEARCH / "tables.md").read_text(encoding="utf-8")):
        exec(compile(code, "tables.md", "exec"), names)
    problem = rehearsal()
    for name in ("Random", "Informed"):
        searcher = names[name](problem)
        proposed = searcher.ask(20)
        assert len({p.allocation for p in proposed}) > 3, name
        assert all(problem.space.contains(p.allocation) and problem.fits(p.allocation) for p in proposed), name
        searcher.tell([])
