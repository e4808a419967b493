"""Whole tables on the planted oracle: every row, its limits, going on after a kill, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.store import Store
from bench.table1.__main__ import main
from bench.table1.load import load_table
from bench.table1.methods import ROWS
from bench.table1.run import run_table
from qra_bo.utils.errors import ConfigError, JournalError, OutputError

SETTINGS = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "effort=quick",
            "effort.max_full_trials=9", "table1=short", "table1.seeds=2", "table1.key_seeds=3",
            "table1.amq_evaluations=6", "effort.uniform_baselines=2"]
FINER = ("best_uniform_finer_gptq", "best_simple_finer_gptq", "qra_bo_finer_gptq")
LIMITS = ("table1.limits=['peak uniform:4,8 <=4','stored uniform:4,4 for qra_bo,loftq,best_uniform," + ",".join(FINER)
          + "','free for qra_bo']")
COLUMNS = {"method", "mean", "se", "seeds", "avg_bits", "avg_rank", "predicted_bytes", "measured_bytes", "search_steps",
           "train_steps", "gap_closed", "reported"}


def make(folder: Path, *more: str) -> dict[str, Any]:
    return run_table(load_table([*SETTINGS, LIMITS, f"out={folder}", *more])).table


@pytest.fixture(scope="module", name="made")
def make_table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("table") / "t"
    return folder, make(folder)


def test_qlora_as_published_keeps_an_embedding_of_16_bits(tmp_path: Path) -> None:
    more = ("table1.limits=['peak uniform:4,4']", "table1.methods=[lora_16,qlora,qlora_published]", "embeddings=8")
    table = run_table(load_table([*SETTINGS, *more, f"out={tmp_path / 't'}"])).table
    rows = {r["method"]: r for r in table["rows"]}
    packed = 512 * 64 + 2 * 512  # 8 bits a weight, and a scale of 16 bits for 64 of them
    dense = rows["qlora_published"]["predicted_bytes"] - rows["qlora"]["predicted_bytes"]
    assert dense in (2 * 512 * 64 - packed, 4 * 512 * 64 - packed)  # a CPU may compute in fp32
    assert rows["qlora_published"]["seeds"] == 2


def test_every_method_has_a_row_within_its_limit(made: tuple[Path, dict[str, Any]]) -> None:
    folder, table = made
    assert table["complete"]
    assert {r["method"] for r in table["rows"]} == set(ROWS) - {"qlora_published"}  # in 16 bits it is qlora
    assert len(table["rows"]) == 6 + 12 + 6 + 1
    limits = {limit["name"]: limit for limit in table["limits"]}
    for row in table["rows"]:
        assert set(row) >= COLUMNS
        if row["method"].endswith("_gptq"):
            assert row["why"] == "GPTQ needs calibration text, which oracle=synthetic does not have"
            continue
        assert row["why"] == ""
        assert row["seeds"] == len(row["losses"]) == (3 if ROWS[row["method"]].key else 2)
        limit = limits.get(row["limit"])
        if limit is not None and limit["budget_bytes"] is not None:
            assert row["predicted_bytes"] <= limit["budget_bytes"]
            assert row["avg_bits"] <= (limit["max_average_bits"] or 8)
    by_name = {(r["method"], r["limit"]): r for r in table["rows"]}
    assert by_name["qlora", "own memory"]["gap_closed"] == 0
    assert by_name["lora_16", "own memory"]["reported"]["value"] == 69.94
    assert by_name["autoqra", "peak uniform:4,8 <=4"]["reported"]["status"] == "reported"
    assert by_name["loftq", "stored uniform:4,4"]["reported"] is None
    assert by_name["loftq", "stored uniform:4,4"]["avg_rank"] == 4
    assert by_name["qra_bo", "free"]["qra_bo_minus_row"] is None
    assert by_name["best_uniform", "stored uniform:4,4"]["qra_bo_minus_row"]["train_seeds"] == 3
    assert json.loads((folder / "table1.json").read_text()) == table


def test_going_on_repeats_nothing_and_more_seeds_add_theirs_alone(made: tuple[Path, dict[str, Any]],
                                                                  tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made[0], folder)
    before = Store(folder / "table1.jsonl").events
    assert make(folder) == made[1]
    assert Store(folder / "table1.jsonl").events == before
    more = make(folder, "table1.seeds=3")
    new = Store(folder / "table1.jsonl").events[len(before):]
    assert {e["event"] for e in new} == {"trial"}
    assert all(e["key"].endswith("-test") for e in new)
    assert {r["seeds"] for r in more["rows"] if not r["why"]} == {3}


def test_a_killed_table_goes_on_to_the_same(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made[0], folder)
    raw = (folder / "table1.jsonl").read_bytes()
    (folder / "table1.jsonl").write_bytes(raw[:int(0.6 * len(raw))])
    for path in sorted((folder / "searches").glob("*"))[1::3]:
        shutil.rmtree(path)
    again = make(folder)
    assert again["rows"] == made[1]["rows"]
    assert (folder / "table1.md").read_text().splitlines()[:-1] == (made[0] / "table1.md").read_text().splitlines()[:-1]


def test_what_can_not_be_compared_is_refused(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made[0], folder)
    with pytest.raises(JournalError, match=r"another configuration: fidelity.high was 24 and is 30"):
        make(folder, "fidelity.high=30")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x").touch()
    with pytest.raises(OutputError, match=r"holds files and no table1.jsonl"):
        make(tmp_path / "foreign")
    with pytest.raises(OutputError, match="nothing to resume"):
        make(tmp_path / "new", "resume=true")
    with pytest.raises(ConfigError, match=r"table1.seeds must be at least 2"):
        load_table([*SETTINGS, "table1.seeds=1"])
    with pytest.raises(ConfigError, match="unknown method of the table 'qra_b'"):
        load_table([*SETTINGS, "table1.methods=[qra_b]"])


def test_a_method_that_nothing_fits_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    table = make(tmp_path / "t", "table1.methods=[loftq,adalora,qra_bo]", "table1.limits=['peak uniform:2,1 <=3']")
    whys = {r["method"]: r["why"] for r in table["rows"]}
    assert whys["adalora"].startswith("AdaLoRA with a target of rank 1 needs ")
    assert whys["loftq"] == whys["qra_bo"] == ""
    assert "- AdaLoRA: no result, AdaLoRA with a target" in (tmp_path / "t" / "table1.md").read_text()


def test_methods_on_nf4_take_fewer_bits_where_it_does_not_fit(tmp_path: Path) -> None:
    table = make(tmp_path / "t", "table1.methods=[loftq,adalora]", "table1.limits=['peak uniform:3,8 <=3']")
    rows = {r["method"]: r for r in table["rows"]}
    assert [rows[m]["avg_bits"] for m in ("loftq", "adalora")] == [3, 3]
    assert rows["loftq"]["avg_rank"] == 8
    assert rows["loftq"]["note"].startswith("on int3-g64, as NF4 does not fit")
    assert ", on int3-g64, as NF4 does not fit" in rows["adalora"]["note"]


def test_the_command_prints_the_work_first_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SETTINGS, "display=plain", f"out={tmp_path / 't'}", "table1.methods=[qlora,lora_16,qra_bo]",
               "table1.limits=['peak uniform:4,4']", "method=random"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "table1=short for tiny, effort=quick: 3 rows, at most " in err
    assert err.index("table1=short") < err.index("[1/3]")
    assert "peak uniform:4,4: qra_bo " in out
    assert "table1.md" in out
