"""The live view shows cost, time left and the incumbent."""

import io
import re
from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from qra_bo.report.data import parse_events
from qra_bo.report.live import LiveView, line_of
from qra_bo.study.events import FinishedTrial
from qra_bo.study.lines import decode
from qra_bo.study.state import UNSEARCHED_STAGES, Study
from qra_bo.study.verdict import verdict_card
from tests.report.fixtures import L, make_events


def fed(events):
    """The run after ``events``, and the line of each."""
    study, lines = Study(), []
    for event in map(decode, events):
        before = study.incumbent
        study.add(event)
        lines.append(line_of(event.record, study, before))
    return study, lines


def test_every_event_has_a_line_or_silence_as_the_report_of_the_same_journal_has_it():
    events = make_events()
    events[0]["unit_numel"] = [100, *[1] * (L - 1)]
    study, lines = fed(events)
    d = parse_events(events)
    assert (study.incumbent, study.best_uniform) == (d.study.incumbent, d.study.best_uniform)
    of_trials = [line for e, line in zip(events, lines, strict=True) if e["event"] == "trial"]
    mixed = [(e, line) for e, line in zip(d.study.trials, of_trials, strict=True) if e.ok and len(set(e.bits)) > 1]
    assert len(mixed) > 10
    assert all(f"({d.average_bits(e.allocation):.2f} bits, " in line for e, line in mixed)
    assert any("diverged (the loss became NaN at step 7)" in line for line in of_trials)
    assert lines[-1] == "ended: done"


def test_eta_is_the_rest_of_the_plan_at_the_measured_pace():
    first = [e for e in make_events() if e["event"] in ("header", "trial")][:3]
    study, _ = fed(first)
    tokens = sum(e["training_tokens"] + e["forward_tokens"] / 3 for e in first[1:])
    seconds = sum(e["seconds"] for e in first[1:])
    assert study.eta_seconds == pytest.approx((first[0]["planned_cost"] - tokens) * seconds / tokens)
    several, _ = fed({**e, "workers": 4} for e in first)
    assert several.eta_seconds == pytest.approx(study.eta_seconds / 4)
    unsearched, _ = fed([{**first[0], "planned_cost": 0.0}, *first[1:]])
    assert (unsearched.eta_seconds, Study().eta_seconds) == (None, None)


def test_only_trials_of_the_search_say_how_far_it_is():
    out, shown = io.StringIO(), {}
    view = LiveView(Console(file=out, width=300))
    for event in map(decode, make_events()):
        out.truncate(0)
        view(replace(event, time=datetime.now().astimezone()))
        if isinstance(event.record, FinishedTrial):
            shown[event.record.trial.stage] = "of the planned search" in out.getvalue()
    assert {stage for stage, told in shown.items() if not told} == UNSEARCHED_STAGES & shown.keys() != set()


def test_a_comparison_has_the_line_of_the_verdict_s_card():
    found = next(e for e in make_events() if e["event"] == "confirmation")
    study, lines = fed([*make_events()[:-8], found])
    assert lines[-1] == verdict_card(study).finding


def test_an_activity_says_how_long_the_rest_takes_by_its_own_rate() -> None:
    out, now = io.StringIO(), [0.0]
    view = LiveView(Console(file=out, width=300), clock=lambda: now[0])
    told = []
    for what, seconds, done in (("choose codes (a)", 0, 1), ("choose codes (a)", 21, 2), ("choose codes (a)", 63, 4),
                                ("train", 70, 1), ("train (loss 3)", 91, 10), ("train", 120, 1), ("train", 150, 2)):
        now[0] = seconds
        out.truncate(0)
        view.progress(what, done, 100)
        told.append(re.findall("about (.*) left", out.getvalue()))
    assert told == [[], ["34 min"], ["34 min"], [], ["4 min"], [], ["49 min"]]
