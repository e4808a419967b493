"""Anchors by hand, intervals against scipy, state folded from evaluations, names explained."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qra_bo.searchers.rates.model import load_rates, of_training, rows_terms
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.study.baselines import fractional_choices, in_turn, largest_rank, uniform_choices
from qra_bo.study.confirmation import confirmation
from qra_bo.study.intervals import paired_interval
from qra_bo.study.lines import study_of
from qra_bo.study.setting import BaselineRules, training_seeds
from qra_bo.study.status import StatusFile
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.utils.errors import BudgetError, JournalError
from qra_bo.utils.files import write_json
from tests.report.fixtures import make_events
from tests.study.oracles import DAMAGE, FORMATS, UNITS
from tests.study.problem import BUDGET, compared, make_problem, predict_bytes

RULES = BaselineRules(4, FORMATS, 32, BUDGET, predict_bytes)
PROFILE = SensitivityProfile(UNITS, FORMATS, DAMAGE, DAMAGE, None, 4.0, "planted")


@given(st.integers(100, 2000), st.sampled_from(FORMATS), st.integers(1, 40), st.integers(1, 40))
def test_largest_rank_is_the_last_that_fits(budget: int, fmt: str, cap: int, narrow: int) -> None:
    rules = BaselineRules(4, FORMATS, cap, budget, lambda a: predict_bytes(a) - 60 * (a.ranks[0] >= narrow))
    fitting = [r for r in range(1, cap + 1) if rules.fits(uniform(4, fmt, r))]
    assert largest_rank(rules, fmt) == max(fitting, default=0)


def test_simple_choices_are_the_best_rank_of_every_format_and_the_widest_mix_of_every_rank() -> None:
    problem = make_problem(PROFILE)
    rates = of_training(load_rates("smollm2_135m"), problem, 8)
    uniforms, fractional = uniform_choices(RULES, problem, rates), fractional_choices(problem, rates)
    assert uniforms == [uniform(4, "nf4", 4), uniform(4, "hqq2", 11)]
    # 315 bytes, 100 of them fixed and 3 a rank and unit: rank 1 leaves 203, of which 2-bit takes 20, 4-bit 40, 8-bit 80
    assert set(fractional) == {
        Allocation(("nf4", "nf4", "nf4", "hqq8"), (1,) * 4), Allocation(("nf4", "hqq2", "nf4", "nf4"), (4,) * 4),
        *(Allocation(("nf4", "hqq2", "nf4", "nf4"), (r,) * 4) for r in (1, 2)),
        Allocation(("hqq2", "hqq2", "hqq2", "nf4"), (8,) * 4)}
    expected = [float((rows_terms(problem, problem.space.encode(a)[None]) @ rates.slopes)[0]) for a in fractional]
    assert expected == sorted(expected)
    with pytest.raises(BudgetError, match=r"hqq2 with rank 1 needs 192 bytes"):
        uniform_choices(replace(RULES, budget_bytes=191), problem, rates)


def test_baselines_are_uniform_and_fractional_in_turn() -> None:
    u, f = ([uniform(2, fmt, r) for r in (1, 2, 3)] for fmt in ("nf4", "hqq2"))
    assert in_turn(u, f[:1]) == [u[0], f[0], *u[1:]]
    assert in_turn(u[:1], f) == [u[0], f[0]]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_interval_is_scipys(differences: list[float]) -> None:
    interval = paired_interval(differences)
    spread = stats.sem(differences)
    if spread == 0:
        assert interval.low == interval.high == pytest.approx(interval.mean)
        return
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=np.mean(differences), scale=spread)
    assert interval.mean == pytest.approx(np.mean(differences), abs=1e-12)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


MIXED, FRACTION, UNIFORM = Allocation(("hqq2", "hqq8"), (1, 2)), Allocation(("hqq2", "nf4"), (4, 4)), \
    uniform(2, "nf4", 4)


@pytest.mark.parametrize(("ours", "theirs", "kind"), [
    ((1.0, 2.0), (1.1, 2.1), "mixed"), ((1.0, 2.0), (1.0, 2.0), "uniform"), ((1.2, 2.0), (1.1, 2.0), "uniform"),
    ((1.0, 2.0), (1.01, 2.19), "uniform"), ((None, 2.0, 2.0), (1.1, 2.1, 2.1), "uniform"),
    ((3.0044, 3.0046), (3.0, 3.0), "uniform"), ((2.9955, 2.9956), (3.0, 3.0), "mixed")])
def test_what_is_not_shown_to_be_better_is_not_delivered(ours: tuple[float | None, ...], theirs: tuple[float, ...],
                                                         kind: str) -> None:
    data = confirmation(compared({MIXED: ours, UNIFORM: theirs}), MIXED, UNIFORM, UNIFORM, 24)
    assert (data.winner_kind, data.winner) == (kind, MIXED if kind == "mixed" else UNIFORM)
    assert (data.candidate_failed, data.versus_uniform) == (None in ours, None)
    if None not in ours:
        assert data.mean == pytest.approx(np.mean(np.array(ours) - np.array(theirs)))
    alone = confirmation({}, None, UNIFORM, UNIFORM, 24)
    assert (alone.winner_kind, alone.differences, alone.candidate) == ("uniform", (), UNIFORM)


@pytest.mark.parametrize(("ours", "simple", "kind"), [(1.0, 1.1, "mixed"), (1.1, 1.0, "fractional"),
                                                      (1.0, 1.3, "mixed"), (1.25, 1.3, "uniform")])
def test_the_reference_is_the_better_simple_choice_on_these_seeds(ours: float, simple: float, kind: str) -> None:
    losses = compared({MIXED: (ours, ours + .01), FRACTION: (simple, simple + .012), UNIFORM: (1.2, 1.213)})
    data = confirmation(losses, MIXED, FRACTION, UNIFORM, 24)
    assert (data.winner_kind, data.reference) == (kind, FRACTION if simple < 1.2 else UNIFORM)
    other = min(simple, 1.2) + .0125 / 2
    assert data.mean == pytest.approx(ours + .005 - other, abs=.001)
    if simple < 1.2:
        assert data.versus_uniform.mean == pytest.approx(min(ours, simple) - 1.2, abs=.002)
        assert np.mean(data.losses_of(data.winner)) == pytest.approx(min(ours, simple) + .0055, abs=.001)
    else:
        assert data.versus_uniform is None
    assert confirmation(losses, None, FRACTION, UNIFORM, 24).winner == (FRACTION if simple < 1.2 else UNIFORM)


@pytest.mark.parametrize(("simple", "uniform", "reference"), [
    ((1.0, 1.1, 1.2), (None, None, 0.9), FRACTION), ((1.0, 1.1, 1.2), (None, None, None), FRACTION),
    ((1.0, 1.1, 1.2), (None, 1.0, 1.1), FRACTION), ((None, None, 0.9), (1.0, 1.1, 1.2), UNIFORM),
    ((None, 1.1, 1.0), (1.0, None, 1.2), UNIFORM), ((None, None), (None, None), UNIFORM)])
def test_a_simple_choice_that_fails_where_the_other_does_not_is_no_reference(
        simple: tuple[float | None, ...], uniform: tuple[float | None, ...], reference: Allocation) -> None:
    data = confirmation(compared({FRACTION: simple, UNIFORM: uniform}), None, FRACTION, UNIFORM, 24)
    assert (data.reference, data.winner) == (reference, reference)


def test_training_seeds_differ_and_follow_from_the_seed() -> None:
    main, others = training_seeds(0, 8)
    assert len({main, *others}) == 9
    assert training_seeds(0, 3) == (main, others[:3])
    assert training_seeds(1, 3) != training_seeds(0, 3)


def test_malformed_events_are_named() -> None:
    with pytest.raises(JournalError, match="calibration event"):
        study_of([{"event": "calibration", "learning_rate": "?"}])
    with pytest.raises(JournalError, match="trial"):
        study_of([{"event": "trial", "id": 1}])
    for workers in (0, -1, True, "4", 2.5):
        with pytest.raises(JournalError, match="workers"):
            study_of([{**next(line for line in make_events() if line["event"] == "trial"), "workers": workers}])


def test_status_is_replaced_whole_and_a_full_disk_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    status = StatusFile(tmp_path, dict)
    status.write("running")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "status.json", float("nan"))
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
    StatusFile(tmp_path / "vanished", dict).write("running")
    assert "the run goes on" in caplog.text


def test_progress_is_written_now_and_then(tmp_path: Path) -> None:
    now = [0.0]
    status = StatusFile(tmp_path, dict, clock=lambda: now[0])
    for now[0] in (0.0, 0.5, 1.5):
        status.progress("train", int(10 * now[0]), 20)
        if now[0] == 0.5:
            assert json.loads((tmp_path / "status.json").read_text())["progress"]["done"] == 0
    assert json.loads((tmp_path / "status.json").read_text())["progress"] == {"what": "train", "done": 15, "total": 20}


def test_time_left_is_of_the_search() -> None:
    study = study_of(make_events()[:12])
    assert study.eta_seconds is not None
    for stage, left in (("search", study.eta_seconds), ("confirmation", None), ("end", None)):
        runner: Any = SimpleNamespace(study=study, status=SimpleNamespace(stage=stage))
        assert TrialRunner._facts(runner)["eta_seconds"] == left
