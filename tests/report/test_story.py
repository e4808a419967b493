"""Sentences about results state no more than the evidence supports."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qra_bo.report import story
from qra_bo.report.data import parse_events
from qra_bo.report.notes import notes
from qra_bo.report.plots import RUNS_PLOTS
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.tables import PlanRow, print_plan, print_result
from qra_bo.report.text import describe_allocation, duration, rough, short_names, size
from qra_bo.space import uniform
from qra_bo.study.health import card, health
from qra_bo.utils.formatting import signed
from tests.report.fixtures import L, failed_alone, make_events, minimised_at, without_mixed

RUN = Path("runs/a")


def with_confirmation(wins=True, **changes):
    events = make_events(wins=wins)
    return parse_events([{**e, **changes} if e["event"] == "confirmation" else e for e in events])


def test_better_needs_interval_without_zero_and_five_seeds():
    assert story.answer(with_confirmation()).tone == "better"
    holds_zero = story.answer(with_confirmation(low=-.02, high=.001, mean=-.01))
    assert holds_zero.tone == "equal"
    assert "not resolved" in holds_zero.sentence
    few = {"train_seeds": [1, 2], "candidate_losses": [4, 4], "reference_losses": [4.1, 4.1], "differences": [-.1] * 2}
    assert story.answer(with_confirmation(**few)).tone == "open"


def test_a_uniform_winner_is_named_so():
    d = parse_events(make_events(wins=False))
    a = story.answer(d)
    assert a.sentence.startswith("A uniform baseline wins")
    assert a.tone == "equal"
    assert story.comparison(d)[0].role == "winner = best uniform"


def test_a_uniform_baseline_wins_over_mixed_ones_alone_that_were_trained():
    events = without_mixed(make_events(wins=False))
    assert story.answer(parse_events(events)).sentence.startswith("A uniform baseline wins")
    stopped = parse_events([e for e in events if e["event"] != "trial" or e["stage"] in ("baseline", "calibration")])
    a = story.answer(stopped)
    assert (a.tone, "No mixed allocation has a loss" in a.sentence) == ("open", True)
    assert card(stopped.study, "beats_uniform").status == "not measured"


def test_a_reference_that_is_the_best_uniform_choice_keeps_its_role():
    qlora = uniform(L, "nf4", 16)
    events = [{**e, "reference": qlora.to_json()} if e["event"] == "confirmation" else e for e in make_events()]
    roles = [row.role for row in story.comparison(parse_events(events))]
    assert roles == ["winner", "best uniform = QLoRA", "LoRA, 16-bit"]
    won = [{**e, "winner_kind": "uniform"} if e["event"] == "confirmation" else
           {**e, "best": qlora.fingerprint} if e["event"] == "end" else e for e in events]
    roles = [row.role for row in story.comparison(parse_events(won))]
    assert roles == ["winner = best uniform = QLoRA", "best mixed", "LoRA, 16-bit"]


def test_a_uniform_winner_without_a_comparison_has_no_interval():
    assert story.versus(parse_events(without_mixed(make_events(wins=False)))) == "the best uniform itself"


def test_a_mixed_allocation_that_failed_has_no_difference():
    d = parse_events(failed_alone(make_events(wins=False)))
    a = story.answer(d)
    assert a.sentence.endswith("The best mixed allocation found failed on unseen training seeds.")
    assert (a.figure, a.interval, a.tone) == ("", "", "equal")
    assert story.versus(d) == "mixed failed on unseen seeds"
    assert "()" not in printed(print_result, d, RUN)


def test_worse_is_said_only_over_enough_seeds():
    lost = {"low": .05, "high": .15, "mean": .1}
    assert "was worse" in story.answer(with_confirmation(wins=False, **lost)).sentence
    few = {"train_seeds": [1, 2], "candidate_losses": [4.1, 4.1], "reference_losses": [4, 4], "differences": [.1] * 2}
    assert "had a higher loss" in story.answer(with_confirmation(wins=False, **lost, **few)).sentence


def delivering(events, allocation):
    return parse_events([*events[:-1], {**events[-1], "status": "next_best", "best": allocation.fingerprint}])


def test_next_best_does_not_inherit_the_confirmation():
    events = make_events()
    c = parse_events(events).confirmation
    d = delivering(events, next(e.allocation for e in parse_events(events).study.ranked
                                if e.allocation not in (c.candidate, c.reference)))
    a = story.answer(d)
    assert "measured over the budget" in a.sentence
    assert (a.tone, a.interval) == ("open", "")
    assert story.versus(d) == "not confirmed"
    shown = [NamedRun("replaced", d), NamedRun("whole", parse_events(events))]
    labels = RUNS_PLOTS["differences"](shown).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["whole"]


def test_a_next_best_that_was_compared_keeps_what_is_known_of_it():
    won = make_events()
    c = parse_events(won).confirmation
    d = delivering(won, c.reference)
    assert story.answer(d).sentence.endswith(f"instead: {d.name(c.reference)}. It is the best uniform baseline.")
    assert (story.answer(d).figure, story.versus(d)) == ("", "the best uniform itself")
    lost = make_events(wins=False)
    d, mean = delivering(lost, c.candidate), signed(parse_events(lost).confirmation.mean)
    assert (story.answer(d).figure, story.answer(d).tone) == (f"{mean} nats", "open")
    assert "not confirmed" not in story.answer(d).sentence
    assert story.versus(d).startswith(mean)


@pytest.mark.parametrize("measured", [1, None])
def test_an_allocation_that_was_measured_over_the_budget_does_not_fit(measured):
    events = make_events()
    budget, c = events[0]["budget_bytes"], parse_events(events).confirmation
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


def test_plain_output_has_no_empty_parentheses():
    d = with_confirmation(wins=False)
    same = replace(d, confirmation=replace(d.confirmation, candidate=d.confirmation.reference))
    assert story.answer(same).interval == ""
    assert "()" not in printed(print_result, same, RUN)


def test_gptq_codes_are_stated_and_not_compared_with_rtn():
    events = make_events()
    assert "Codes" not in dict(notes(parse_events(events)))
    header = {**events[0], "config": {**events[0]["config"], "quantizer": {"rounding": "gptq", "tokens": 16384}}}
    d = parse_events([header, *events[1:]])
    assert "16,384 tokens" in dict(notes(d))["Codes"]
    assert story.gap_closed(d) is None
    nearest = [{**e, "codes": "rtn"} if e.get("stage") == "reference" and "nf4" in e.get("formats", ()) else e
               for e in (header, *events[1:])]
    d = parse_events(nearest)
    assert story.gap_closed(d) == story.gap_closed(parse_events(events))
    qlora = next(row for row in story.comparison(d) if row.role == "QLoRA")
    assert qlora.name == "uniform-4bit-r16-rtn"


def test_unconfirmed_difference_is_labelled():
    a = story.answer(parse_events(make_events(finished=False)))
    assert a.tone == "open"
    assert "not confirmed" in a.interval


def test_unconfirmed_difference_states_what_learned_rates_expect():
    d = parse_events(minimised_at(make_events(finished=False), 480))
    best, uniform_one = d.study.incumbent, d.study.best_uniform
    expected = d.study.value(best) - d.study.value(uniform_one)
    assert abs(expected - (best.loss - uniform_one.loss)) > 1e-3
    said = f"{signed(expected)} predicted for 480 steps"
    assert f"one training seed; {said}; not confirmed" in story.answer(d).interval
    assert f"nats, and {said}." in card(d.study, "beats_uniform").finding
    alone = parse_events(make_events(finished=False))
    assert "predicted" not in story.answer(alone).interval + card(alone.study, "beats_uniform").finding


def test_gap_under_three_standard_errors_is_unresolved():
    events = make_events()
    assert story.gap_closed(parse_events(events)).startswith("\u2212")
    wide = [{**e, "loss_se": .1} if e.get("stage") == "reference" and e["event"] == "trial" else e for e in events]
    assert "unresolved" in story.gap_closed(parse_events(wide))
    assert story.gap_closed(parse_events([e for e in events if e.get("stage") != "reference"])) is None


def test_a_16_bit_reference_that_is_worse_leaves_no_gap_to_close():
    events = make_events()
    worse = [{**e, "loss": e["loss"] + 1, "loss_se": .001} if e.get("stage") == "reference" and e["event"] == "trial"
             and "fp16" in e["formats"] else e for e in events]
    said = story.gap_closed(parse_events(worse))
    assert "no better than QLoRA (+0." in said
    assert "standard errors" not in said  # it is far more than three


def test_proxy_results_are_labelled_everywhere():
    d = parse_events(make_events(oracle="synthetic"))
    assert "SYNTHETIC" in d.proxy_label
    for terminal in (True, False):
        assert "SYNTHETIC" in printed(print_result, d, RUN, terminal=terminal)
    assert parse_events(make_events()).proxy_label is None


def test_a_learning_rate_at_the_edge_of_those_tried_is_noted():
    def said(**changes):
        events = [{**e, **changes} if e["event"] == "calibration" else e for e in make_events()]
        return dict(notes(parse_events(events)))["Learning rate"]

    assert "at the edge of those tried" in said(tried=[1e-3, 2e-3])
    assert "at the edge" not in said()
    best_below_one_that_diverged = said(trials=[{"learning_rate": rate, "loss": 4.2} for rate in (1e-3, 2e-3)])
    assert "over 3 rates" in best_below_one_that_diverged
    assert "at the edge" not in best_below_one_that_diverged


@pytest.mark.parametrize(("rule", "said"), [("inverse_sqrt", False), ("by_length", True)])
def test_a_rate_that_falls_with_the_length_is_said_with_that_of_the_final_fine_tune(rule: str, said: bool) -> None:
    events = [{**e, "rule": rule} if e["event"] == "calibration" else e for e in make_events()]
    assert ("in the final fine-tune" in dict(notes(parse_events(events)))["Learning rate"]) == said


def printed(call, *args, terminal=False):
    out = io.StringIO()
    call(Console(file=out, force_terminal=terminal, width=110), *args)
    return out.getvalue()


def test_every_card_is_printed_on_a_terminal_and_elsewhere():
    d = parse_events(make_events(wins=False))
    for terminal in (True, False):
        text = " ".join(printed(print_result, d, RUN, terminal=terminal).split())
        for c in health(d.study):
            assert c.question in text
            assert c.status in text
    assert "Check: Noise below the gap? fail." in text
    assert "Check:" not in printed(print_result, parse_events(make_events(finished=False)), RUN)


def test_the_delivered_loss_comes_first():
    d = parse_events(make_events())
    first = "Delivered adapter: test loss 3.8710 nats per token (perplexity 47.99) after 240 steps"
    assert printed(print_result, d, RUN).startswith(first)
    assert story.delivered(parse_events(make_events(finished=False))) == ""


def test_plain_output_has_next_steps_and_no_escape_codes():
    text = printed(print_result, parse_events(make_events()), RUN, ["best.json"])
    assert "\x1b" not in text
    for part in ("95 % interval", 'qra_bo.load("runs/a")', "task=export out=runs/a", "Files in runs/a: best.json",
                 "Bits and ranks: 0: 8-bit r1"):
        assert part in text


def test_names_with_brackets_are_text_not_markup():
    for terminal in (True, False):
        assert "[bold]x[/bold]" in printed(print_result, parse_events(make_events(model="[bold]x[/bold]")), RUN,
                                           terminal=terminal)


def test_the_plan_adds_up_and_admits_what_it_does_not_know():
    rows = [PlanRow("profile", 1_000, 10), PlanRow("search", 3_000, None)]
    text = print_plan_text(rows)
    assert "in all: 4,000 training tokens = 2.0 full-trial equivalents, not known yet" in text
    assert "about 10 s" in text


def print_plan_text(rows):
    return printed(print_plan, "tiny", rows, 2_000.0)


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (1_500, "1.50 kB"), (9_999_000, "10.0 MB"),
                                             (74_300_000, "74.3 MB"), (10_000_000_000, "10.0 GB"),
                                             (137_900_000_000_000, "137,900 GB")])
def test_sizes_are_decimal(value, text):
    assert size(value) == text


def test_texts():
    assert [duration(s) for s in (42, 425, 12_000)] == ["42 s", "7 min 05 s", "3 h 20 min"]
    assert [rough(s) for s in (42, 59.7, 425, 3_570, 12_000, 7_200, 72_000, 4_445_580)] == [
        "42 s", "1 min", "7 min", "60 min", "3 h 20 min", "2 h", "20 h", "51 days"]
    assert signed(-.012) == "\u22120.0120"
    assert short_names(["model.layers.0.attn", "model.layers.0.mlp", "model.layers.1.attn"]) == [
        "0.attn", "0.mlp", "1.attn"]
    assert short_names(["a.b", "a.c.d"]) == ["b", "c.d"]
    assert describe_allocation(["l.0", "l.1", "l.2"], [8, 4, 4], [1, 2, 2]) == "0: 8-bit r1 · 1\u20132: 4-bit r2"


def test_a_search_that_stopped_early_and_went_on_is_not_said_to_have_ended_early() -> None:
    events = make_events()
    stopped = {"event": "stopped", "session": 1, "elapsed": events[-1]["elapsed"], "chance": .1, "least": .2}
    key = next(e["key"] for e in events if e.get("stage") == "trust_region")
    assert "10 %" in dict(notes(parse_events([*events, {**stopped, "before": "0" * len(key)}])))["Early stop"]
    assert "Early stop" not in dict(notes(parse_events([*events, {**stopped, "before": key}])))


def test_notes_name_the_best_uniform_baseline() -> None:
    said = dict(notes(parse_events(make_events())))["Uniform baselines"]
    assert "uniform-4bit-r4" in said
    assert "before the search" not in said  # an extended search trains further ones after it
    assert dict(notes(parse_events(make_events()[:4])))["Uniform baselines"] == "None that fits was trained yet."


def test_notes_have_the_difference_at_other_learning_rates() -> None:
    mean = parse_events(make_events()).confirmation.mean
    check = {"event": "rate_check", "session": 1, "elapsed": make_events()[-1]["elapsed"], "rates": [
        {"factor": .5, "mean": mean, "low": mean - .01, "high": mean + .01, "train_seeds": [1, 2, 3, 4, 5]}]}
    assert "0.50 times the rate" in dict(notes(parse_events([*make_events(), check])))["Other learning rates"]
    assert "Other learning rates" not in dict(notes(parse_events(make_events())))


def test_better_takes_five_seeds():
    said = story.answer(with_confirmation(train_seeds=[101, 102, 103, 104], high=-.001))
    assert "better than" not in said.sentence
    assert said.tone == "open"
