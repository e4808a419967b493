"""``effort=instant``: the exact optimum under learned rates, labelled as predicted, and the search that follows it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qra_bo
from qra_bo.pipeline.run import Result
from qra_bo.report import story
from qra_bo.report.data import load_run, parse_events
from qra_bo.report.html import render_html
from qra_bo.report.story import answer, comparison, versus
from qra_bo.searchers.rates.model import load_rates
from qra_bo.study import prediction
from qra_bo.study.journal import read_journal
from qra_bo.study.lines import begun_study
from qra_bo.study.prediction import solved, updated
from qra_bo.study.results import build_best
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.study.verdict import VerdictKind
from qra_bo.trials import Fidelity, Trial
from qra_bo.utils.errors import JournalError
from tests.conformance.searcher import make_problem

COMMON: dict[str, Any] = {"model": "tiny", "data": "tiny", "oracle": "synthetic", "budget": "uniform:3,16",
                          "display": "none", "device": "cpu", "dtype": "float32", "bits": [2, 3, 4],
                          "quantizer.formats.2": ["int2-g64"], "quantizer.formats.3": ["int3-g64"], "confirm.seeds": 2}
QUICK: dict[str, Any] = {"effort": "quick", "effort.max_full_trials": 9}


@pytest.fixture(name="sure")
def with_narrow_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a prediction that leaves little open: the mixed allocation is delivered."""
    monkeypatch.setattr(prediction, "CARRIED", .002)


def instant(out: Path, **more: Any) -> Result:
    return qra_bo.allocate(**COMMON, **more, out=str(out))


def quick(out: Path, **more: Any) -> Result:
    return qra_bo.search(**{**COMMON, **QUICK, **more}, out=str(out))


def kept(trials: list[Trial]) -> list[tuple[str, str, float | None]]:
    return [(e.spec.key, e.stage, e.loss) for e in trials if e.stage != "comparison"]


def test_solution_is_the_exact_optimum_within_the_budget() -> None:
    problem, _ = make_problem(3)
    table = load_rates("smollm2_135m").table(problem)
    allocation, smaller = solved(problem, table, [1.0, 0.9])
    n_units, n_formats, n_ranks = problem.costs.shape
    rows = np.array(list(np.ndindex(*(n_formats,) * n_units, *(n_ranks,) * n_units)))
    losses = table[np.arange(n_units), rows[:, :n_units], rows[:, n_units:]].sum(axis=1)
    fits = problem.costs.feasible(rows, problem.budget_bytes)
    found = problem.space.encode(allocation)
    assert losses[fits].min() == pytest.approx(losses[(rows == found).all(axis=1)][0], abs=1e-4)
    assert problem.costs.feasible(problem.space.encode(smaller)[None], int(0.9 * problem.budget_bytes))[0]


@pytest.mark.usefixtures("sure")
def test_instant_checks_its_prediction_at_low_fidelity_and_delivers_the_best(tmp_path: Path) -> None:
    result = instant(tmp_path)
    best, study, d = result.best, begun_study(tmp_path), load_run(tmp_path)
    assert repr(result) == f"Result({tmp_path}: mixed allocation of tiny, loss \u2013, predicted)"
    assert {(e.stage, e.fidelity, e.spec.train_seed) for e in study.trials} == {
        ("comparison", Fidelity.LOW, study.header.train_seed)}
    assert {study.kind_of(e.allocation) for e in study.trials} >= {"uniform", "mixed"}
    assert (best["searched"], best["versus_best_uniform"], best["loss"]) == (False, None, None)
    p, prediction = best["prediction"], study.prediction
    assert (p["label"], p["checked_steps"]) == ("predicted, not searched", study.header.low_steps)
    assert p["low"] + p["high"] == pytest.approx(2 * p["mean"])
    losses = {e.allocation: e.loss for e in study.trials}
    assert study.winner == prediction.allocations[0] == min(losses, key=lambda a: losses[a] or 0.0)
    assert p["high"] - p["low"] < 2 * 0.05
    found = d.verdict.versus_simple or d.verdict.versus_uniform
    assert d.verdict.kind is VerdictKind.PREDICTED
    assert found is not None
    assert "predicted, not searched" in versus(d)
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert instant(tmp_path).best == best
    assert (tmp_path / "trials.jsonl").read_bytes() == raw


def test_the_simple_choice_is_delivered_where_no_benefit_is_expected(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {}
    for carried in (.002, .02):  # what the check leaves open widens the interval, until it holds 0
        monkeypatch.setattr(prediction, "CARRIED", carried)
        best = instant(tmp_path / str(carried)).best
        mixed = best["prediction"]["mixed"]
        kinds[best["verdict"]] = best["winner_kind"]
        assert (mixed is None) == (best["winner_kind"] == "mixed")
        assert mixed is None or mixed["low"] <= 0 <= mixed["high"]
    assert kinds == {"predicted": "mixed", "no benefit expected": "uniform"}


@pytest.mark.parametrize(("promised", "measured"), [(-.7, -.11), (-.7, .05), (.3, .02), (-.002, -.03)])
def test_a_promise_gives_way_to_what_was_measured(promised: float, measured: float) -> None:
    found, opposite = (updated(sign * promised, sign * promised, .012, sign * measured) for sign in (1, -1))
    assert (found.mean, found.low) == pytest.approx((-opposite.mean, -opposite.high))
    assert found.low < measured < found.high
    assert abs(found.mean - measured) < abs(promised - measured) * .8
    assert found.high - found.low < .12
    longer = updated(promised, promised / 2, .012, measured)
    assert abs(longer.mean) < abs(found.mean)


@pytest.mark.parametrize("cut", [b'"event":"prediction"', b'"event":"end"'])
def test_a_run_goes_on_with_the_prediction_in_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          cut: bytes) -> None:
    best = instant(tmp_path).best
    lines = (tmp_path / "trials.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if cut in line)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[:first + 1]))
    monkeypatch.setattr(prediction, "solved", lambda problem, table, shares: solved(problem, -table, shares))
    again = instant(tmp_path).best
    assert (again["bits"], again["ranks"], again["prediction"]) == (best["bits"], best["ranks"], best["prediction"])
    assert [e["event"] for e in read_journal(tmp_path / "trials.jsonl").events].count("prediction") == 1


@pytest.mark.usefixtures("sure")
def test_a_uniform_prediction_is_not_compared_with_itself(tmp_path: Path) -> None:
    instant(tmp_path)
    events = read_journal(tmp_path / "trials.jsonl").events
    event = next(e for e in events if e["event"] == "prediction")
    assert event["reference"] in event["allocations"]
    same = {**event, "allocations": [event["reference"]], "mean": 0.0, "low": 0.0, "high": 0.0,
            "simple": event["reference"], "versus_simple": {"mean": 0.0, "low": 0.0, "high": 0.0}}
    d = parse_events([same if e is event else e for e in events if e["event"] != "end"])
    assert (d.verdict.kind, d.verdict.versus_uniform) == (VerdictKind.NO_BENEFIT, None)
    assert "0.0000" not in versus(d)


def test_search_after_instant_equals_one_without_it(tmp_path: Path) -> None:
    instant(tmp_path / "grown")
    grown, alone = quick(tmp_path / "grown"), quick(tmp_path / "alone")
    after, apart = begun_study(tmp_path / "grown"), begun_study(tmp_path / "alone")
    assert kept(after.trials) == kept(apart.trials)
    assert after.calibrated
    assert after.learning_rate == apart.learning_rate
    assert (grown.best["prediction"], grown.best["searched"]) == (None, True)
    for key in ("bits", "ranks", "loss", "versus_best_uniform", "learning_rate"):
        assert grown.best[key] == alone.best[key]
    checked = sum(e.result.training_tokens for e in after.trials if e.stage == "comparison")
    assert grown.best["cost"]["training_tokens"] == alone.best["cost"]["training_tokens"] + checked  # one profile
    assert "effort quick" in render_html(load_run(tmp_path / "grown"), {})
    assert after.planned_cost == apart.planned_cost
    longer = quick(tmp_path / "grown", **{"effort.max_full_trials": 12})
    assert kept(begun_study(tmp_path / "grown").trials)[:len(apart.trials) - 4] == kept(apart.trials)[:-4]
    assert longer.best["searched"]
    again = instant(tmp_path / "grown").best  # keeps the winner of the search
    assert (again["bits"], again["ranks"], again["prediction"]) == (longer.best["bits"], longer.best["ranks"], None)


@pytest.mark.parametrize("reached", ['"event":"profile"', '"event":"calibration"', '"event":"trial".*"baseline"'])
def test_instant_predicts_in_the_folder_of_a_search_that_proposed_nothing(tmp_path: Path, reached: str) -> None:
    quick(tmp_path)
    journal = tmp_path / "trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept_lines = lines[:1 + next(i for i, line in enumerate(lines) if re.search(reached, line))]
    journal.write_text("".join(kept_lines))
    rate = begun_study(tmp_path).learning_rate
    best = instant(tmp_path).best
    assert (best["searched"], best["prediction"]["label"]) == (False, "predicted, not searched")
    assert [e.stage for e in begun_study(tmp_path).trials].count("baseline") == ("baseline" in reached)
    assert rate in (None, best["learning_rate"])
    assert quick(tmp_path).best["searched"]


@pytest.mark.usefixtures("sure")
def test_other_rates_are_refused_in_a_folder_that_predicted(tmp_path: Path) -> None:
    instant(tmp_path / "run")
    other = tmp_path / "rates.json"
    text = (Path(str(qra_bo.__file__)).parent / "searchers" / "rates" / "smollm2_135m.json").read_text()
    other.write_text(text.replace('"error": 0.01', '"error": 0.02'))
    with pytest.raises(JournalError, match=r"surrogate\.rates"):
        instant(tmp_path / "run", **{"surrogate.rates": str(other)})
    own, others = (instant(tmp_path / name, **more).best["prediction"] for name, more in (
        ("run", {}), ("other", {"surrogate.rates": str(other)})))
    assert own["mean"] != others["mean"]


@pytest.mark.usefixtures("sure")
def test_qlora_stands_beside_a_prediction_without_a_verdict(tmp_path: Path) -> None:
    asked = {"effort.references": True}
    best = instant(tmp_path, **asked).best
    study, d = begun_study(tmp_path), load_run(tmp_path)
    (trial,) = (e for e in study.trials if e.fidelity is Fidelity.HIGH)
    assert (trial.stage, trial.spec.split, set(trial.allocation.formats)) == ("comparison", "test", {"nf4"})
    assert (study.points, best["searched"], best["versus_best_uniform"]) == ([], False, None)
    assert (d.verdict.kind, answer(d).tone) == (VerdictKind.PREDICTED, "open")
    row = comparison(d)[-1]
    assert (row.role, row.test_loss, row.search_loss) == ("QLoRA", trial.loss, None)
    assert instant(tmp_path, **asked).best == best
    assert len(begun_study(tmp_path).trials) == len(study.trials)
    assert quick(tmp_path).best["searched"]


@pytest.mark.usefixtures("sure")
def test_what_is_delivered_in_its_stead_does_not_inherit_the_prediction(tmp_path: Path) -> None:
    instant(tmp_path)
    events = read_journal(tmp_path / "trials.jsonl").events
    d = load_run(tmp_path)
    first, second = d.study.prediction.allocations[:2]
    reference, simple = d.study.prediction.reference, d.study.prediction.simple
    for delivered, role in ((second, "the next best"), (simple, "the best simple choice"), (reference, "the best ")):
        d = parse_events([{**e, "status": "next_best", "best": delivered.fingerprint} if e["event"] == "end" else e
                          for e in events])
        v = d.verdict
        assert (v.kind, v.versus_simple, v.delivered) == (VerdictKind.REPLACED, None, delivered)
        said = answer(d)
        assert role in said.sentence
        assert said.sentence.index(d.study.name(first)) < said.sentence.index(d.study.name(delivered))
        own = build_best(d.study)["prediction"]
        assert (own["label"], own["mean"], own["low"], own["high"]) == ("predicted, not searched", None, None, None)
    rows = comparison(d)
    assert [row.role for row in rows] == ["delivered = best uniform", "also checked", "also checked"]
    tried = [(d.study.name(e.allocation), e.loss) for e in d.study.trials]
    best = dict(sorted(tried, key=lambda at: -at[1]))  # of several learning rates, of which the last is no good
    assert {row.name: row.search_loss for row in rows} == best != dict(tried)
    assert f"after {d.study.prediction.checked_steps} steps" in story.tested(d)


def test_the_final_fine_tune_is_no_time_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    monkeypatch.setattr(TrialRunner, "reset_stopwatch", lambda run: stages.append(run.status.stage))
    instant(tmp_path, **{"effort.references": True})
    assert stages == ["profile", "reference"]
