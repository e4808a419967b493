"""What is said of a fine-tune beside the untuned model."""

from typing import Any

import pytest
from scipy.stats import t as student

from qra_bo.report.data import parse_events
from qra_bo.report.story import answer
from qra_bo.study.gain import GainKind, gain_of, told_gain
from qra_bo.study.results import build_best
from qra_bo.utils.errors import JournalError
from tests.report.test_golden import events

BEFORE = [[400.0, 100], [410.0, 100], [396.0, 100], [402.0, 100]]


def of(after: list[float], before: Any = BEFORE) -> Any:
    """The journal of a run whose test sequences had these losses before and after training."""
    def loss(sequences: Any) -> float:
        return float(sum(s for s, *_ in sequences) / sum(n for _, n, *_ in sequences))

    pairs = [[a, *of] for a, (_, *of) in zip(after, before, strict=True)]
    changed = {"untuned": {"sequences": before, "loss": loss(before)},
               "final": {"sequences": pairs, "loss": loss(pairs)}}
    return parse_events([{**e, **changed.get(e["event"], {})} for e in events()])


@pytest.mark.parametrize(("after", "kind"), [
    ([390.0, 401.0, 385.0, 391.0], GainKind.BETTER), ([410.0, 421.0, 405.0, 411.0], GainKind.WORSE),
    ([624.0] * 4, GainKind.WORSE), ([400.0, 410.0, 396.0, 402.0], GainKind.UNRESOLVED),
    ([380.0, 430.0, 390.0, 404.0], GainKind.UNRESOLVED), ([399.9, 409.9, 395.9, 401.9], GainKind.BETTER)])
def test_training_that_did_not_help_is_said_first(after: list[float], kind: GainKind) -> None:
    d = of(after)
    gain = gain_of(d.study)
    assert gain.kind is kind
    assert (answer(d).tone == "worse") == (kind is GainKind.WORSE)
    stated = build_best(d.study)["untuned"]
    assert (stated["verdict"], stated["loss"]) == (kind.value, gain.before)
    assert stated["versus"]["mean"] == pytest.approx(gain.after - gain.before)


def test_one_sequence_has_no_interval_and_decides_nothing() -> None:
    gain = gain_of(of([300.0], BEFORE[:1]).study)
    assert (gain.kind, gain.versus) == (GainKind.UNRESOLVED, None)


def test_an_interval_promises_no_loss_below_0() -> None:
    gain = gain_of(of([1.0, 399.0], [[400.0, 100], [410.0, 100]]).study)
    assert gain.versus.low == -gain.before


def test_sequences_of_one_document_count_as_one() -> None:
    before = [[400.0, 100, 0], [404.0, 100, 0], [396.0, 100, 1], [402.0, 100, 1]]
    gain = gain_of(of([390.0, 401.0, 385.0, 391.0], before).study)
    differences = [(-10 - 3) / 200, (-11 - 11) / 200]
    half = student.ppf(.975, 1) * abs(differences[0] - differences[1]) / 2
    assert (gain.versus.mean, gain.versus.high) == pytest.approx((sum(differences) / 2, sum(differences) / 2 + half))


@pytest.mark.parametrize(("cut", "said"), [
    (40, ("6 sequences", "9", "70", "44%", "train.length=128")), (0, ("9", "70"))])
def test_text_and_the_length_that_keeps_it_stand_beside_the_result(cut: int, said: tuple[str, ...]) -> None:
    facts = {"records": 9, "cut_records": min(cut, 5), "answer_tokens": 90, "cut_tokens": cut, "used_tokens": 70,
             "usual_length": 128}
    train = {"length": 32, "batch": 2, "accumulate": 3}
    changed = {"provenance": {"data_facts": facts}, "header": {"config": {"train": train}}}
    told = told_gain(parse_events([{**e, **changed.get(e["event"], {})} for e in events()]).study)
    assert all(part in told for part in said)
    assert ("train.length" in told) == (cut > 0)


@pytest.mark.parametrize("facts", [{"evil": 1}, [1], {"records": "x"}, {"records": 0, "cut_records": 1}])
def test_odd_facts_of_a_foreign_journal_are_one_message(facts: Any) -> None:
    with pytest.raises(JournalError):
        parse_events([{**e, **({"data_facts": facts} if e["event"] == "provenance" else {})} for e in events()])
