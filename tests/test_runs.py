"""``python -m qra_bo.runs``: lists, shows, compares and prunes; never removes by surprise."""

import json

import pytest

from qra_bo.cli.app import main as command
from qra_bo.report.html import write_report
from qra_bo.runs import CHECKPOINTS, main
from qra_bo.study.journal import RunLock
from qra_bo.utils.formatting import DASH
from tests.colleague import as_colleague, open_copy
from tests.report.fixtures import make_events, write_run


@pytest.fixture
def outputs(tmp_path):
    for name, options in (("done", {}), ("uniform", {"wins": False, "seed": 1}), ("cut/short", {"finished": False})):
        run = write_run(tmp_path / name, make_events(**options))
        (run / CHECKPOINTS).mkdir()
        (run / CHECKPOINTS / "a.safetensors").write_bytes(b"0" * 1000)
    return tmp_path


def test_list_has_a_line_a_run_and_keeps_unreadable_ones(outputs, capsys):
    (outputs / "broken").mkdir()
    (outputs / "broken" / "trials.jsonl").write_text("nonsense\n")
    assert main(["list", str(outputs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("\t")[0]: line.split("\t") for line in lines if "\t" in line}
    assert cells["done"][1] == "done"
    header = next(line.split("\t") for line in lines if line.startswith("run\t"))
    final = header.index("final loss")
    assert header[final - 1] == "search loss"  # one split a column
    assert [cells[name][final] for name in ("done", "cut/short")] == ["3.8710", DASH]
    assert cells["done"][final + 1].endswith("mixed")
    assert cells["cut/short"][1] == "unfinished"
    assert cells["broken"][1] == "unreadable"
    assert any(line.startswith(f"{outputs / 'broken'}: ") and "header" in line for line in lines)


def test_a_run_whose_winner_is_in_no_line_hides_no_others(outputs, capsys):
    events = make_events()
    write_run(outputs / "odd", [*events[:-1], {**events[-1], "best": "0" * 64}])
    assert main(["list", str(outputs)]) == 0
    shown = capsys.readouterr().out
    assert "odd\tunreadable" in shown
    assert "neither evaluated nor given" in shown
    assert "done\tdone" in shown
    assert command([f"out={outputs}", "task=report"]) == 0
    assert "odd is left out" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [0, 0o444])
def test_folder_without_permission_is_named(outputs, capsys, mode):
    with open_copy(outputs) as copy:
        (copy / "done").chmod(mode)
        with as_colleague():
            assert main(["list", str(copy)]) == 0
        (copy / "done").chmod(0o755)
    shown = capsys.readouterr().out
    assert "done\tunreadable" in shown
    assert "it can't be read (Permission denied)" in shown
    assert "uniform\tdone" in shown


def test_a_locked_run_is_active(outputs, capsys):
    with RunLock(outputs / "cut" / "short"):
        main(["list", str(outputs)])
        assert "cut/short\tactive" in capsys.readouterr().out
        main(["prune", str(outputs), "--unfinished", "--yes"])
    assert (outputs / "cut" / "short" / "trials.jsonl").exists()


@pytest.mark.parametrize(("written", "shown"), [("running", "died"), ("interrupted", "interrupted"),
                                                ("failed", "failed"), ("nonsense", "unfinished"), (None, "unfinished")])
def test_a_run_that_ended_early_shows_how(outputs, capsys, written, shown):
    run = outputs / "cut" / "short"
    if written is not None:
        (run / "status.json").write_text(json.dumps({"state": written}))
    main(["list", str(outputs)])
    assert f"cut/short\t{shown}\t" in capsys.readouterr().out
    main(["show", str(run)])
    assert f"State: {shown} in the stage" in capsys.readouterr().out
    main(["prune", str(outputs), "--unfinished", "--yes"])
    assert not run.exists()


def test_show_prints_the_answer_or_json(outputs, capsys):
    assert main(["show", str(outputs / "done")]) == 0
    assert "Mixed bits and ranks fine-tune" in capsys.readouterr().out
    assert main(["show", str(outputs / "done"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "smollm2_135m"


def test_compare_puts_runs_side_by_side_and_says_what_differs(outputs, capsys):
    other = write_run(outputs / "other", make_events(model="tiny"))
    assert main(["compare", str(outputs / "done"), str(outputs / "uniform"), str(other)]) == 0
    out = capsys.readouterr().out
    assert "differ in model" in out
    assert "differ in budget" not in out


def test_compare_writes_one_page_that_leads_to_each_report(outputs, capsys):
    write_report(outputs / "done")
    page = outputs / "pages" / "page.html"
    page.parent.mkdir()
    assert main(["compare", str(outputs / "done"), str(outputs / "uniform"), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert 'href="../done/report.html"' in page.read_text()
    assert "uniform/report.html" not in page.read_text()


def test_task_report_of_a_folder_writes_one_page_and_one_a_run(outputs, capsys):
    (outputs / "broken").mkdir()
    (outputs / "broken" / "trials.jsonl").write_text("nonsense\n")
    assert command([f"out={outputs}", "task=report"]) == 0
    out = capsys.readouterr().out
    assert "broken is left out" in out
    page = (outputs / "report.html").read_text()
    assert "3 runs side by side" in page
    for name in ("done", "uniform", "cut/short"):
        assert f'href="{name}/report.html"' in page
        assert (outputs / name / "report.html").is_file()


def test_prune_is_a_dry_run_without_yes(outputs, capsys):
    assert main(["prune", str(outputs), "--unfinished"]) == 0
    assert "add --yes" in capsys.readouterr().out
    assert (outputs / "done" / CHECKPOINTS).exists()
    assert main(["prune", str(outputs), "--yes"]) == 0
    assert not (outputs / "done" / CHECKPOINTS).exists()
    assert (outputs / "done" / "trials.jsonl").exists()
    assert (outputs / "cut" / "short" / CHECKPOINTS).exists()
    assert main(["prune", str(outputs), "--yes", "--unfinished"]) == 0
    assert not (outputs / "cut" / "short").exists()


def test_a_folder_named_checkpoints_beside_runs_of_their_own_stays(outputs):
    (outputs / CHECKPOINTS).mkdir()
    assert main(["prune", str(outputs), "--yes", "--unfinished"]) == 0
    assert (outputs / CHECKPOINTS).exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["list", "nowhere"], "not a folder"), (["show", "nowhere"], "no run's folder"),
    (["compare", "nowhere"], "at least two"), (["prune", "nowhere"], "not a folder")])
def test_bad_input_ends_with_two_and_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_unknown_commands_end_with_two(capsys):
    with pytest.raises(SystemExit) as status:
        main(["delete"])
    assert status.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
