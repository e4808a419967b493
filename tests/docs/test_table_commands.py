"""Commands of the pages on tables of real trials: overrides run as they are given, modules are there."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.search.own import rehearsal
from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RESEARCH = ROOT / "docs" / "research"
TEXT = "\n".join((RESEARCH / name).read_text(encoding="utf-8") for name in ("tables.md", "compare.md"))
OVERRIDES = sorted(set(re.findall(r"(?:`|python -m qra_bo )(oracle=benchmark [^`|\n]+)", TEXT)))
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
MODULES = sorted(set(re.findall(r"python -m (bench[\w.]*)", TEXT)))


def test_the_pages_give_commands() -> None:
    assert len(OVERRIDES) >= 3
    assert MODULES


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_searches_on_a_table_end_well(overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    small = [f"out={tmp_path / 'run'}", "display=none", "effort.max_full_trials=8"]
    assert main([*overrides.split(), *small]) == 0
    assert json.loads((tmp_path / "run" / "best.json").read_text())["oracle"] == "benchmark"


@pytest.mark.parametrize("module", MODULES)
def test_modules_can_be_run(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__")


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


@pytest.mark.parametrize(("override", "message"), [
    ("fidelity.high=48", "fidelity.high must be 24, the steps of every trial of the table"),
    ("fidelity.low=7", "fidelity.low must be null or one of 6, 12"),
    ("final.steps=240", "final.steps=240 has no effect with oracle=benchmark: a table answers with the loss after its "
                        "own trials' 24 steps"),
    ("search.length=final", "Leave search.length out, or use oracle=finetune"),
    ("oracle.noise=1e300", "oracle.noise must be at most 100.0; got 1e+300")])
def test_what_no_table_answers_exits_2(override: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle=benchmark", f"oracle.table={ROOT / 'bench/data/plays'}", override]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("given", [[], ["search.length=trial"]])
def test_a_table_is_silent_where_nobody_asks_for_a_final_fine_tune(given: list[str]) -> None:
    load_config(["oracle=benchmark", f"oracle.table={ROOT / 'bench/data/plays'}", *given])


def test_every_override_without_effect_is_named_at_once() -> None:
    table = ["oracle=benchmark", f"oracle.table={ROOT / 'bench/data/plays'}"]
    with pytest.raises(ConfigError) as error:
        load_config([*table, "final.steps=240", "++final.epochs=2", "search.length=final"])
    (message,) = error.value.problems
    assert message.startswith("final.steps=240 final.epochs=2 search.length=final have no effect")
    assert "Leave final.steps, final.epochs, search.length out" in message


def test_a_rehearsal_takes_what_the_real_run_does() -> None:
    assert load_config(["oracle=synthetic", "final.steps=240"]).final.steps == 240
