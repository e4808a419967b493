"""``python -m qra_bo.runs``: lists and shows; several runs on one page."""

import json
import os
import shutil
from io import BytesIO, TextIOWrapper
from types import SimpleNamespace

import pytest
import torch

from qra_bo import runs
from qra_bo.cli.app import main as command
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.report import html
from qra_bo.report.data import parse_events
from qra_bo.report.side_by_side import FoundRun, caveats
from qra_bo.runs import main
from qra_bo.study.journal import read_journal, run_lock
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import OutputError
from qra_bo.utils.formatting import DASH
from tests.data.chat_templates import LLAMA3, chat_tokenizer
from tests.report.fixtures import L, make_events, write_run

ODD = [*make_events()[:-1], {**make_events()[-1], "best": "0" * 64}]
"""A run whose winner is in no line."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs that tests copy."""
    folder = tmp_path_factory.mktemp("runs") / "runs"
    for name, options in (("done", {}), ("uniform", {"wins": False, "seed": 1}), ("cut/short", {"finished": False})):
        write_run(folder / name, make_events(**options))
    (folder / "broken").mkdir()
    (folder / "broken" / "trials.jsonl").write_text("nonsense\n")
    write_run(folder / "odd", ODD)
    return folder


@pytest.fixture
def outputs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "outputs")


@pytest.fixture
def without_figures(monkeypatch):
    """Pages are written without figures, which take longest."""
    monkeypatch.setattr(html, "PLOTS", {})


def test_list_has_a_line_a_run_and_keeps_unreadable_ones(made, capsys):
    assert main(["list", str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("\t")[0]: line.split("\t") for line in lines if "\t" in line}
    final = cells["run"].index("final loss")
    assert cells["run"][final - 1] == "search loss"  # one split a column
    assert [cells[name][final] for name in ("done", "cut/short")] == ["3.8710", DASH]
    states = {name: row[1] for name, row in cells.items() if name != "run"}
    assert states == {"done": "done", "uniform": "done", "cut/short": "unfinished", "broken": "unreadable",
                      "odd": "unreadable"}
    for name, reason in (("broken", "header"), ("odd", "neither evaluated nor given")):
        assert any(line.startswith(f"{made / name}: ") and reason in line for line in lines)


@pytest.mark.parametrize("change", [
    {"config": {"confirm": "a text"}}, {"config": {"confirm": {"seeds": "5"}}}, {"config": {"quantizer": []}},
    {"formats": [{"name": "x", "backend": "hqq", "bits": 10**30, "block": 64}]}, {"ranks": ["x" * 3000]},
    {"unit_numel": [10**30] * L}, {"full_trial_tokens": 0}, {"unit_numel": [1]}, {"units": ["a"]},
    {"method": "no format"}])
def test_odd_values_of_one_run_are_one_short_reason(change, tmp_path, capsys):
    events = make_events()
    lines = json.loads(json.dumps(events[1:-1]).replace('"nf4"', '"nf7"')) if "method" in change else events[1:]
    write_run(tmp_path / "done", events)
    write_run(tmp_path / "bad", [{**events[0], **change}, *lines])
    assert main(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [f"{name}\t{state}" in out for name, state in (("done", "done"), ("bad", "unreadable"))] == [True, True]
    assert main(["show", str(tmp_path / "bad")]) == 2
    assert len(capsys.readouterr().err) < 400


@pytest.mark.parametrize(("error", "status"), [
    (MemoryError(), 2), (IsADirectoryError(21, "is one", "x"), 2), (OutputError("x"), 2),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2), (KeyboardInterrupt(), 130),
    (RunInterrupted(2), 130)])
def test_what_ends_a_command_is_a_status(error, status, monkeypatch, capsys):
    def end(*_, **__):
        raise error
    monkeypatch.setattr(runs, "chat", end)
    assert main(["chat", "x"]) == status
    assert len(capsys.readouterr().err.splitlines()) == (status == 2)


@pytest.mark.parametrize("line", [b"b\xff\n", "b\udcff\n".encode("utf-8", "surrogatepass")])
def test_a_line_that_is_no_text_is_refused(line, made, monkeypatch, capsys):
    monkeypatch.setattr("qra_bo.export.load.load", lambda *_: (None, byte_tokenizer()))
    monkeypatch.setattr("qra_bo.export.load.keep_unpacked", lambda _: None)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(line), "utf-8"))
    assert main(["chat", str(made / "done")]) == 2
    assert "your line" in capsys.readouterr().err


def test_a_system_message_opens_a_conversation_and_is_refused_beside_texts(made, tmp_path, monkeypatch, capsys):
    assert main(["chat", str(made / "done"), "--system", "Be brief."]) == 2
    assert "leave --system out" in capsys.readouterr().err
    events = make_events()
    write_run(tmp_path / "talks", [events[0], {**events[1], "data_chats": True}, *events[2:]])
    tokenizer, asked = chat_tokenizer(LLAMA3), []

    def generate(input_ids, **_):
        asked.append(tokenizer.decode(input_ids[0]))
        return torch.cat([input_ids, torch.tensor([[65]])], dim=1)
    model = SimpleNamespace(generate=generate, device="cpu")
    monkeypatch.setattr("qra_bo.export.load.load", lambda *_: (model, tokenizer))
    monkeypatch.setattr("qra_bo.export.load.keep_unpacked", lambda _: None)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"one\ntwo\n"), "utf-8"))
    assert main(["chat", str(tmp_path / "talks"), "--system", "Be brief."]) == 0
    assert [(text.count("Be brief."), text.index("system") < text.index("one")) for text in asked] == [(1, True)] * 2
    assert "two" in asked[1]


@pytest.mark.usefixtures("without_figures")
def test_a_page_of_somebody_else_is_not_written_over(outputs, capsys):
    (outputs / "report.html").write_text("mine")
    assert command([f"out={outputs}", "task=report"]) == 2
    assert ("move it" in capsys.readouterr().err, (outputs / "report.html").read_text()) == (True, "mine")


@pytest.mark.usefixtures("without_figures")
def test_odd_names_of_folders_break_no_table_and_no_page(made, tmp_path, capsys):
    for name in ("a\tb\nforged\tdone", os.fsdecode(b"by\xff")):
        shutil.copytree(made / "done", tmp_path / name)
    assert command([f"out={tmp_path}", "task=report"]) == 0
    assert "\nforged" not in capsys.readouterr().out
    assert 'href="by%FF/report.html"' in (tmp_path / "report.html").read_text()


def test_a_locked_run_is_active(outputs, capsys):
    with run_lock(outputs / "cut" / "short"):
        main(["list", str(outputs)])
        assert "cut/short\tactive" in capsys.readouterr().out


def test_show_prints_the_answer(made, capsys):
    assert main(["show", str(made / "done")]) == 0
    assert "3.8710" in capsys.readouterr().out


def test_runs_on_another_split_are_said_to_differ(made):
    events = read_journal(made / "done" / "trials.jsonl").events
    one, other = (FoundRun(split, made, parse_events([{**e, "data_sha256": split} if e["event"] == "provenance" else e
                                                      for e in events])) for split in ("a", "b"))
    assert not any("differ" in text for text in caveats([one, one]))
    assert caveats([one, other])[0].startswith("The runs differ in data or its split (seed): ")


@pytest.mark.usefixtures("without_figures")
def test_task_report_of_a_folder_writes_one_page_and_one_a_run(outputs, capsys):
    assert command([f"out={outputs}", "task=report"]) == 0
    out = capsys.readouterr().out
    assert [out.count(f"{name}\tunreadable") for name in ("broken", "odd")] == [1, 1]
    page = (outputs / "report.html").read_text()
    assert "3 runs side by side" in page
    assert "differ in" not in page
    for name in ("done", "uniform", "cut/short"):
        assert f'href="{name}/report.html"' in page
        assert (outputs / name / "report.html").is_file()


def test_a_table_of_runs_says_what_each_alone_was_given(tmp_path, capsys):
    for i in range(2):
        words = ["+model=smollm2_135m", f"adapter.lr=0.00{i + 1}", f"out=sweep/{i}"]
        write_run(tmp_path / str(i), [{**e, "command": words} if e["event"] == "provenance" else e
                                      for e in make_events()])
    assert main(["list", str(tmp_path)]) == 0
    rows = [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert rows == ["given alone", "adapter.lr=0.001", "adapter.lr=0.002"]
