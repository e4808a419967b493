"""Sentences about results state no more than the evidence supports."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from qra_bo.report import story
from qra_bo.report.data import parse_events
from qra_bo.report.next_steps import command
from qra_bo.report.tables import print_result
from qra_bo.report.text import describe_allocation, duration, rough, short_names
from qra_bo.space import uniform
from qra_bo.utils.formatting import signed
from tests.report.fixtures import L, make_events

RUN = Path("runs/a")


def test_a_reference_that_is_the_best_uniform_choice_keeps_its_role():
    qlora = uniform(L, "nf4", 16)
    events = [{**e, "reference": qlora.to_json(), "uniform": qlora.to_json()} if e["event"] == "confirmation" else e
              for e in make_events()]
    roles = [row.role for row in story.comparison(parse_events(events))]
    assert roles == ["winner", "best uniform = QLoRA", "LoRA, 16-bit"]
    won = [{**e, "winner_kind": "uniform"} if e["event"] == "confirmation" else
           {**e, "best": qlora.fingerprint} if e["event"] == "end" else e for e in events]
    roles = [row.role for row in story.comparison(parse_events(won))]
    assert roles == ["winner = best uniform = QLoRA", "best mixed", "LoRA, 16-bit"]


def delivering(events, allocation):
    return parse_events([*events[:-1], {**events[-1], "status": "next_best", "best": allocation.fingerprint}])


@pytest.mark.parametrize("measured", [1, None])
def test_an_allocation_that_was_measured_over_the_budget_does_not_fit(measured):
    events = make_events()
    budget, c = events[0]["budget_bytes"], parse_events(events).study.confirmation
    over = {"measured_bytes": measured and budget + measured, "fits": False}  # none where memory ran out
    events = [{**e, **over} if e["event"] == "measured" else e for e in events]
    rows = {row.role: row for row in story.comparison(delivering(events, c.reference))}
    assert rows["best mixed"].predicted_bytes <= budget
    assert (rows["winner = best uniform"].fits, rows["best mixed"].fits) == (True, False)


def test_a_reference_beyond_the_limit_of_average_bits_does_not_fit():
    events = make_events()
    for limit, fits in ((None, True), (4.5, False)):
        wide = [{**events[0], "budget_bytes": 10**12, "max_average_bits": limit}, *events[1:]]
        rows = {row.role: row.fits for row in story.comparison(parse_events(wide))}
        assert (rows["LoRA, 16-bit"], rows["QLoRA"]) == (fits, True)
        study = parse_events(wide).study
        assert [study.admits(e.bits) for e in study.baselines if e.stage == "reference"] == [fits, True]


def test_proxy_results_are_labelled_everywhere():
    d = parse_events(make_events(oracle="synthetic"))
    assert "SYNTHETIC" in d.proxy_label
    for terminal in (True, False):
        assert "SYNTHETIC" in printed(print_result, d, RUN, terminal=terminal)
    assert parse_events(make_events()).proxy_label is None


def printed(call, *args, terminal=False):
    out = io.StringIO()
    call(Console(file=out, force_terminal=terminal, width=110), *args)
    return out.getvalue()


def test_names_with_brackets_are_text_not_markup():
    for terminal in (True, False):
        assert "[bold]x[/bold]" in printed(print_result, parse_events(make_events(model="[bold]x[/bold]")), RUN,
                                           terminal=terminal)


def test_texts():
    assert [duration(s) for s in (42, 425, 12_000)] == ["42 s", "7 min 05 s", "3 h 20 min"]
    assert [rough(s) for s in (42, 59.7, 425, 3_570, 12_000, 7_200, 72_000, 4_445_580)] == [
        "42 s", "1 min", "7 min", "60 min", "3 h 20 min", "2 h", "20 h", "51 days"]
    assert signed(-.012) == "\u22120.0120"
    assert short_names(["model.layers.0.attn", "model.layers.0.mlp", "model.layers.1.attn"]) == [
        "0.attn", "0.mlp", "1.attn"]
    assert short_names(["a.b", "a.c.d"]) == ["b", "c.d"]
    assert describe_allocation(["l.0", "l.1", "l.2"], [8, 4, 4], [1, 2, 2]) == "0: 8-bit r1 · 1\u20132: 4-bit r2"


def test_commands_keep_the_quotes_of_the_user() -> None:
    words = ["data.path='chats (1).jsonl'", "budget='mix:3.8,2'", "+model=tiny"]
    assert shlex.split(command(words, {})) == ["python", "-m", "qra_bo", "+model=tiny", words[0], "budget=mix:3.8,2"]
