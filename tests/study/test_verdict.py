"""The verdict of a run: its kind and numbers for every way that a comparison can end, and words for every kind."""

from typing import Any

import pytest

from qra_bo.report.data import parse_events
from qra_bo.report.story import comparison
from qra_bo.space import uniform
from qra_bo.study.health import FAIL, PASS, UNKNOWN, WARN
from qra_bo.study.lines import study_of
from qra_bo.study.results import _versus
from qra_bo.study.state import Study
from qra_bo.study.verdict import Evidence, VerdictKind, told, verdict_of
from tests.report.fixtures import L, failed_alone, make_events, minimised_at, without_mixed

Lines = list[dict[str, Any]]
WON, LOST = make_events(), make_events(wins=False)


def changed(kind: str, lines: Lines = WON, **fields: Any) -> Lines:
    return [{**e, **fields} if e["event"] == kind else e for e in lines]


def seeds(n: int, difference: float) -> dict[str, Any]:
    return {"train_seeds": list(range(n)), "candidate_losses": [4.0 + difference] * n, "reference_losses": [4.0] * n,
            "mean": difference, "low": difference - .01, "high": difference + .01, "over_text": False, "level": 0.95}


def against_fractional(lines: Lines) -> Lines:
    """The lines of a run whose best simple choice is fractional."""
    found = next(e for e in lines if e["event"] == "trial" and e["stage"] == "baseline" and len(set(e["formats"])) > 1)
    return changed("confirmation", lines, reference={"formats": found["formats"], "ranks": found["ranks"]},
                   versus_uniform=seeds(5, -.2), **seeds(5, -.1))


def versus(study: Study, key: str) -> tuple[float, float]:
    """Differences of the winner to the best simple and the best uniform choice, as ``best.json`` states them."""
    return tuple(_versus(study, side)[key] for side in ("reference", "uniform"))


def delivering(which: str, lines: Lines = WON) -> Lines:
    study = study_of(lines)
    c = study.confirmation
    other = next(e.allocation for e in study.ranked if e.allocation not in (c.candidate, c.reference))
    chosen = other if which == "other" else getattr(c, which)
    return changed("end", lines, status="next_best", best=chosen.fingerprint)


NF4 = uniform(L, "nf4", 4)
GIVEN = {"allocations": [uniform(L, "nf4", 4).to_json()], "reason": "all fits", "learning_rate": 2e-3,
         "rate_source": "a file", "notes": []}
TRIALS_OF_BASELINES = [e for e in without_mixed(LOST) if e["event"] != "trial" or e["stage"] in ("baseline",
                                                                                                "calibration")]
CASES: list[tuple[Lines, VerdictKind, str]] = [
    (WON, VerdictKind.BETTER, PASS),
    (changed("end", changed("confirmation", **seeds(5, -.005), winner_kind="uniform"), best=NF4.fingerprint),
     VerdictKind.UNRESOLVED, WARN),
    (changed("confirmation", **seeds(4, -.1)), VerdictKind.AHEAD, WARN),
    (LOST, VerdictKind.SIMPLE_WINS, FAIL), (failed_alone(LOST), VerdictKind.SIMPLE_WINS, FAIL),
    (against_fractional(WON), VerdictKind.BETTER, PASS),
    (TRIALS_OF_BASELINES, VerdictKind.NO_MIXED_LOSS, UNKNOWN),
    (changed("confirmation", ahead=1.0), VerdictKind.BETTER, PASS),
    (delivering("reference"), VerdictKind.REPLACED, WARN), (delivering("candidate", LOST), VerdictKind.REPLACED, WARN),
    (delivering("other"), VerdictKind.REPLACED, WARN),
    (make_events(finished=False), VerdictKind.UNCONFIRMED, UNKNOWN),
    (WON[:2], VerdictKind.NOTHING_TRAINED, UNKNOWN),
    (changed("header", WON[:2], given=GIVEN), VerdictKind.GIVEN, UNKNOWN)]


@pytest.mark.parametrize(("lines", "kind", "status"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_kind_and_status_of_a_verdict(lines: Lines, kind: VerdictKind, status: str) -> None:
    study = study_of(lines)
    verdict = verdict_of(study)
    words = told(study, verdict)
    assert (verdict.kind, words.status) == (kind, status)
    assert bool(words.action) == (kind is not VerdictKind.BETTER)
    assert "{" not in words.sentence + words.action
    assert bool(words.figure) == (verdict.versus_simple is not None)


def test_numbers_are_those_of_the_confirmation() -> None:
    study = study_of(minimised_at(WON, 480))
    c, d = study.confirmation, verdict_of(study).versus_simple
    assert (d.evidence, d.mean, d.low, d.high) == (Evidence.UNSEEN_SEEDS, c.mean, c.low, c.high)
    assert (d.seeds, d.steps, d.expected, d.objective_steps) == (5, 64, c.mean + c.ahead, 480)


def test_both_differences_are_stated_where_the_best_simple_choice_is_fractional() -> None:
    study = study_of(against_fractional(WON))
    c, verdict = study.confirmation, verdict_of(study)
    assert (verdict.versus_simple.mean, verdict.versus_uniform.mean) == (c.mean, c.versus_uniform.mean)
    assert versus(study, "mean") == (c.mean, c.versus_uniform.mean) == (-.1, -.2)
    assert (verdict.reference, verdict.uniform, study.kind_of(c.winner)) == (c.reference, NF4, "mixed")
    assert [row.role for row in comparison(parse_events(against_fractional(WON)))][:3] == \
        ["winner", "best simple", "best uniform"]
    taken = changed("confirmation", against_fractional(WON), winner_kind="fractional", **seeds(5, .1))
    lost = study_of(changed("end", taken, best=c.reference.fingerprint))
    assert (versus(lost, "mean"), versus(lost, "high")) == ((0.0, -.2), (0.0, pytest.approx(-.19)))
    assert (lost.kind_of(c.reference), lost.name(c.reference)) == ("fractional", "mix-3.17bit-r5")


def test_numbers_before_a_confirmation_are_those_of_the_search() -> None:
    study = study_of(minimised_at(make_events(finished=False), 480))
    best, reference, d = study.incumbent, study.best_simple, verdict_of(study).versus_simple
    assert (d.evidence, d.low, d.seeds) == (Evidence.SEARCH, None, 1)
    assert d.mean == pytest.approx((best.loss or 0) - (reference.loss or 0))
    assert d.expected == pytest.approx(study.value(best) - study.value(reference))


def test_what_was_delivered_instead_keeps_what_is_known_of_it() -> None:
    lost = study_of(delivering("candidate", LOST))
    verdict = verdict_of(lost)
    assert (verdict.delivered, verdict.delivers_reference) == (lost.confirmation.candidate, False)
    assert verdict_of(study_of(delivering("reference"))).delivers_reference
