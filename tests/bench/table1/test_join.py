"""Tables whose work was split over folders: joined, they are the table that one folder would have become."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.store import Store
from bench.table1.load import load_table
from bench.table1.run import run_table
from qra_bo.utils.errors import ConfigError, JournalError

RESULTS = Path(__file__).parents[3] / "bench" / "results"
OURS = "best_uniform_finer_gptq,best_simple_finer_gptq,qra_bo_finer_gptq"
METHODS = f"lora_16,qlora,{OURS},autoqra,amq_lora,loftq,lq_lora"
PUBLISHED = {
    "table1": (f"table1.methods=[{METHODS}]", "device=cpu", "table1.key_seeds=5", "table1.limits=["
               f"'stored 40MB for {OURS},autoqra,amq_lora','stored 54MB','stored uniform:4,16 for {OURS}']")}
"""Folders of published tables, and how each was made."""
LIMITS = ("peak uniform:4,8 <=4 for amq_lora", "stored uniform:4,4 for loftq,best_uniform")
SETTINGS = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "effort=quick",
            "effort.max_full_trials=9", "table1=short", "table1.seeds=2", "table1.key_seeds=2",
            "table1.amq_evaluations=6", "effort.uniform_baselines=2"]


def make(folder: Path, limits: tuple[str, ...], *more: str) -> dict[str, Any]:
    chosen = ",".join(f"'{limit}'" for limit in limits)
    return run_table(load_table([*SETTINGS, f"table1.limits=[{chosen}]", f"out={folder}", *more])).table


@pytest.fixture(scope="module", name="parts")
def make_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    make(folder / "whole", LIMITS)
    make(folder / "a", LIMITS[:1])
    make(folder / "b", LIMITS[1:])
    return folder / "whole", folder / "a", folder / "b"


def test_joined_parts_are_the_whole_and_nothing_is_evaluated_again(parts: tuple[Path, Path, Path],
                                                                   tmp_path: Path) -> None:
    whole, a, b = parts
    table = make(tmp_path / "t", LIMITS, f"table1.join=[{a},{b}]")
    assert table["rows"] == json.loads((whole / "table1.json").read_text())["rows"]
    events = Store(tmp_path / "t" / "table1.jsonl").events
    there = {(e["event"], e["key"]) for part in (a, b) for e in Store(part / "table1.jsonl").events}
    assert {(e["event"], e["key"]) for e in events} <= there
    assert "join" not in events[0]["table1"]  # folders of one machine
    trials = [e for e in events if e["event"] == "trial"]
    assert trials
    assert all(("sequence_losses" in e) == e["key"].endswith("-test") for e in trials)  # for intervals over text
    assert make(tmp_path / "t", LIMITS, f"table1.join=[{b}]") == table
    assert Store(tmp_path / "t" / "table1.jsonl").events == events


def test_what_is_no_part_of_the_table_is_refused(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="seed was 0 and is 1"):
        make(tmp_path / "t", LIMITS, f"table1.join=[{parts[1]}]", "seed=1")
    with pytest.raises(ConfigError, match=r"holds no table1\.jsonl"):
        make(tmp_path / "u", LIMITS, f"table1.join=[{tmp_path}]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "table1.jsonl").touch()
    with pytest.raises(JournalError, match="is empty"):
        make(tmp_path / "v", LIMITS, f"table1.join=[{tmp_path / 'empty'}]")


def test_results_that_do_not_compare_are_refused(parts: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other, joined = tmp_path / "other", tmp_path / "t"
    shutil.copytree(parts[2], other)
    text = (other / "table1.jsonl").read_text()
    (other / "table1.jsonl").write_text(re.sub('"data_sha256": "[^"]*"', '"data_sha256": "0"', text))
    shutil.copytree(parts[1], joined)
    with pytest.raises(JournalError, match="data_sha256 was"):
        make(joined, LIMITS, f"table1.join=[{other}]")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results_give_the_published_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.pipeline.prepare.check_ram", lambda *_: None)  # nothing is loaded
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # the published table was made on a CPU
    config = load_table(["+model=smollm2_135m", "data=plays", "effort=quick", "display=none", *PUBLISHED[name],
                         f"table1.join=[{RESULTS / name}]", f"out={tmp_path / 't'}"])
    assert run_table(config).table == json.loads((RESULTS / name / "table1.json").read_text())
