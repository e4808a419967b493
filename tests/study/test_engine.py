"""A run is a program that its journal replays: what is finished is never repeated, and the end is the same."""

import dataclasses
import json
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.study import trial_runner
from qra_bo.study.engine import RunOutcome
from qra_bo.study.events import Event
from qra_bo.study.journal import Journal, checksum, read_journal, session_seconds
from qra_bo.study.lines import as_line, begun_study
from qra_bo.study.results import write_best
from qra_bo.study.signals import RunInterrupted
from qra_bo.study.state import UNSEARCHED_STAGES
from qra_bo.trials import Fidelity, Proposal, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, JournalError, QRABOError
from tests.study.oracles import PlantedOracle
from tests.study.problem import (
    BUDGET,
    EQUIVALENT,
    Recorded,
    Silent,
    Walk,
    comparable,
    keys,
    make_setting,
    predict_bytes,
    run,
    warnings_of,
)


@pytest.fixture(scope="module", name="whole")
def make_whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_a_run_does_everything_in_order_and_fits(whole: tuple[Path, RunOutcome]) -> None:
    folder, outcome = whole
    study = outcome.study
    stages = list(dict.fromkeys(e.stage for e in study.trials))
    assert stages == ["calibration", "baseline", "reference", "evolution", "confirmation"]
    assert study.learning_rate == 2e-3  # where the planted loss is least
    assert all(e.predicted_bytes <= BUDGET for e in study.trials if e.stage != "reference")
    assert {e.spec.learning_rate for e in study.trials if e.stage != "calibration"} == {2e-3}
    assert {e.spec.split for e in study.trials if e.stage == "confirmation"} == {"test"}
    assert study.search_cost.tokens >= 24 * EQUIVALENT
    before_last = [e for e in study.trials if e.stage == "evolution"][-1]
    assert study.search_cost.tokens - before_last.result.training_tokens - 10 < 24 * EQUIVALENT
    assert outcome.exit_status == 0
    assert len(keys(folder)) == len(set(keys(folder)))


@pytest.mark.parametrize(("stop", "every"), [(RunInterrupted(15), 60.0), (SystemExit(9), 0.01)])  # a signal, a kill
def test_a_stop_in_the_profile_loses_no_time(whole: tuple[Path, RunOutcome], stop: BaseException, every: float,
                                             tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(PlantedOracle):
        def profile(self, progress: Progress) -> SensitivityProfile:
            time.sleep(0.4)
            progress("profile", 1, 2)
            raise stop

    monkeypatch.setattr(trial_runner, "MARK_SECONDS", every, raising=False)
    with pytest.raises(type(stop)):
        run(tmp_path, InProcessExecutor(Slow()))
    before = read_journal(tmp_path / "trials.jsonl").events
    assert session_seconds(before) >= 0.4
    searched, begin = list[float](), trial_runner.TrialRunner.begin

    def noted(runner: trial_runner.TrialRunner) -> None:
        searched.append(runner.search_seconds)
        begin(runner)

    monkeypatch.setattr(trial_runner.TrialRunner, "begin", noted)
    outcome = run(tmp_path)
    assert searched[0] >= 0.4  # counted against max_hours
    after = read_journal(tmp_path / "trials.jsonl").events
    second = [event for event in after if event["session"] == 2]
    assert outcome.best["cost"]["wall_seconds"] >= 0.4 + second[-2]["elapsed"]
    assert comparable(outcome.best)["cost"] == comparable(whole[1].best)["cost"]


def test_references_with_other_codes_never_win(tmp_path: Path) -> None:
    qlora = uniform(4, "nf4", 16)  # which is a uniform baseline within this budget too
    options: dict[str, Any] = {"budget": 455, "ranks": [1, 2, 4, 8, 16], "fine_tunes": False, "confirm__seeds": 0,
                               "quantizer__rounding": "gptq"}
    outcome = run(tmp_path, **options)
    mine = [e for e in outcome.study.trials if e.spec.codes == "rtn"]
    assert [(e.allocation, e.stage) for e in mine] == [(qlora, "reference")]
    own = [e for e in outcome.study.points if e.allocation == qlora]
    assert [e.spec.codes for e in own] == [None]
    assert mine[0].spec.key == f"{own[0].spec.key}-rtn"
    names = [b["name"] for b in outcome.best["baselines"]]
    assert names.count("uniform-4bit-r16") == 1
    assert names[-1] == "uniform-4bit-r16-rtn"
    assert run(tmp_path, **options).best == outcome.best


def test_a_reference_that_is_feasible_counts_as_a_baseline(tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": 455, "fine_tunes": False, "confirm__seeds": 0,
                               "effort__uniform_baselines": 1}
    for top, stage in ((16, "baseline"), (8, "reference")):  # and one above the largest of ranks is not
        outcome = run(tmp_path / stage, ranks=[1, 2, 4, top], **options)
        qlora = [e for e in outcome.study.trials if e.allocation == uniform(4, "nf4", 16)]
        assert [e.stage for e in qlora] == [stage]
        listed = {b["name"]: b["reference"] for b in outcome.best["baselines"]}
        assert listed["uniform-4bit-r16"] is (stage == "reference")
        assert all(max(e.allocation.ranks) <= top for e in outcome.study.trials if e.stage != "reference")


def test_repeated_lines_and_lines_of_another_seed_are_named_and_not_charged(
        whole: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    run(tmp_path / "other", seed=1)
    own, other = ((folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
                  for folder in (whole[0], tmp_path / "other"))
    mixed = [*own[:20], *own[4:12], *other[:9], *own[20:-1], *other[9:], own[30], own[-1]]
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "trials.jsonl").write_bytes(b"".join(mixed))
    outcome = run(tmp_path / "mixed")
    assert comparable(outcome.best) == comparable(whole[1].best)
    assert outcome.study.cost == whole[1].study.cost
    assert [e.spec.key for e in outcome.study.trials] == keys(whole[0])
    assert warnings_of(tmp_path / "mixed")[-2:] == [
        f"lines of trials.jsonl left out, because they belong to another run: {len(other)}, the first of them line 29",
        "lines of trials.jsonl left out, because they repeat earlier lines: 9, the first of them line 21"]


def test_best_json_has_the_fields_of_the_contract(whole: tuple[Path, RunOutcome]) -> None:
    best = json.loads((whole[0] / "best.json").read_text())
    assert best == json.loads(json.dumps(whole[1].best))
    assert "uniform-4bit-r4" in {b["name"] for b in best["baselines"]}
    assert best["baselines"][-2] == {"name": "uniform-16bit-r16", "bits": 16, "ranks": 16, "format": "fp16",
                                     "codes": None, "loss": pytest.approx(3.974, abs=.001), "feasible": False,
                                     "reference": True,
                                     "predicted_bytes": predict_bytes(uniform(4, "fp16", 16))}
    assert (best["fidelity"], best["base_origin"]) == ("high", "planted")
    assert best["memory"]["measured_bytes"] == 1
    setting = make_setting()
    assert best["provenance"]["train_seeds"] == [setting.train_seed, *setting.confirm_seeds]
    assert write_best(whole[0], begun_study(whole[0])) == best  # from the journal alone


@pytest.mark.parametrize("share", [0.0, .03, .15, .3, .6, .75, .9, .99])
def test_cut_anywhere_and_resumed_it_ends_the_same(whole: tuple[Path, RunOutcome], tmp_path: Path,
                                                   share: float) -> None:
    raw = (whole[0] / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(raw[:round(share * len(raw))])
    assert comparable(run(tmp_path).best) == comparable(whole[1].best)
    assert keys(tmp_path) == keys(whole[0])
    assert {m.split("(")[0] for m in warnings_of(tmp_path)} <= {"the last line of trials.jsonl was cut off "}


def test_whatever_line_is_damaged_is_done_again_though_the_effort_was_spent(tmp_path: Path) -> None:
    """The last evaluation goes beyond the effort, by more than some of the others cost."""
    short: dict[str, Any] = {"effort__max_full_trials": 22, "effort__references": False, "confirm__seeds": 2}
    plain = run(tmp_path / "plain", **short)
    lines = (tmp_path / "plain" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert plain.study.search_cost.tokens > 22 * EQUIVALENT + min(
        e.result.training_tokens for e in plain.study.trials)
    assert any(e.stage == "confirmation" for e in plain.study.trials)
    for number, line in enumerate(lines[1:], start=1):
        if b'"profile"' in line or b'"calibration"' in line or b'"trial"' in line:
            folder = tmp_path / str(number)
            folder.mkdir()
            hurt = line.replace(b'"session":1', b'"session":7')
            (folder / "trials.jsonl").write_bytes(b"".join([*lines[:number], hurt, *lines[number + 1:]]))
            assert run(folder, **short).winner == plain.winner
            assert sorted(keys(folder)) == sorted(keys(tmp_path / "plain"))


def test_more_effort_extends_a_finished_run(whole: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    def planned() -> float:
        return float(json.loads((tmp_path / "status.json").read_text())["planned_cost"])

    short = run(tmp_path, effort__max_full_trials=12, effort="quick")
    assert planned() == 12 * EQUIVALENT
    done = keys(tmp_path)
    extended = run(tmp_path)
    assert planned() == 24 * EQUIVALENT
    assert keys(tmp_path)[:len(done)] == done
    assert len(set(keys(tmp_path))) == len(keys(tmp_path))
    assert set(keys(whole[0])) <= set(keys(tmp_path))
    assert extended.winner == whole[1].winner
    assert short.best["effort"] == "quick"
    assert extended.best["effort"] == "normal"
    evolved = [len([e for e in study.trials if e.stage == "evolution"]) for study in (short.study, extended.study)]
    assert evolved[0] < evolved[1]
    events = read_journal(tmp_path / "trials.jsonl").events
    begun = next(i for i, e in enumerate(events) if e["event"] == "extension")
    for part in (events[:begun], events[begun:]):  # what goes on names its stages, and their ends
        assert {(e["stage"], e["state"]) for e in part if e["event"] == "stage"} >= {
            ("search", "start"), ("search", "end"), ("confirmation", "start"), ("confirmation", "end")}
    forbidden = PlantedOracle()
    forbidden.evaluate = forbidden.describe = None  # type: ignore[assignment,method-assign]
    assert run(tmp_path, InProcessExecutor(forbidden)).best == extended.best  # the same again repeats nothing
    assert [e["event"] for e in read_journal(tmp_path / "trials.jsonl").events[len(events):]] == []


def test_an_extension_adds_the_anchors_that_were_left_out(whole: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    run(tmp_path, effort__max_full_trials=8, effort__uniform_baselines=2)
    first = [e.allocation for e in begun_study(tmp_path).baselines]
    assert first.pop(0) == uniform(4, "nf4", 2)  # of the calibration
    assert first[0] == uniform(4, "nf4", 4)
    assert (len(set(first[1].formats)), len(set(first[1].ranks))) == (2, 1)
    extended = run(tmp_path)
    names = {b["name"] for b in extended.best["baselines"]}
    assert names == {b["name"] for b in whole[1].best["baselines"]}
    longer = run(tmp_path, effort__max_full_trials=30)
    assert longer.best["cost"]["search_full_trial_equivalents"] >= 30


@pytest.mark.parametrize("published", [False, True])
def test_a_published_method_keeps_its_own_winner_beside_the_simple_choice(tmp_path: Path, published: bool) -> None:
    outcome = run(tmp_path, InProcessExecutor(Mixing()), Silent, fine_tunes=False, confirm__seeds=0,
                  effort__references=False, method="autoqra" if published else "random")
    found = [e for e in outcome.study.trials if len(set(e.allocation.formats)) > 1]
    assert {e.stage for e in found} == {"reference" if published else "baseline"}
    assert [b["reference"] for b in outcome.best["baselines"] if b["format"] is None] == [published] * len(found)
    least = min(outcome.study.trials, key=lambda e: e.loss or 0.0)
    assert least in found
    assert (outcome.winner == least.allocation) is not published
    assert outcome.best["winner_kind"] == ("uniform" if published else "fractional")


class Mixing(PlantedOracle):
    """Two formats gain a nat."""

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        found = super().evaluate(request, progress)
        return dataclasses.replace(found, loss=(found.loss or 0.0) - (len(set(request.allocation.formats)) > 1))


def test_the_searcher_is_told_anchors_and_failures_in_its_own_units(tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    oracle = PlantedOracle(faults={"12": "raise", "13": "memory"}, folder=str(faults))
    outcome = run(tmp_path / "run", InProcessExecutor(oracle), Recorded)
    told = Recorded.made[-1].told
    assert {e.spec.learning_rate for e in told} == {2e-3}
    assert [e.stage for e in told[:4]] == ["baseline"] * 4
    states = [e.result.state for e in told]
    assert states.count(TrialState.FAILED) == 1
    assert TrialState.OOM not in states  # it says something of the device, and nothing of the objective
    failed = next(e for e in outcome.study.trials if e.result.state is TrialState.FAILED)
    assert failed.result.training_tokens == round(EQUIVALENT * failed.spec.steps / 8)  # charged in full
    assert outcome.study.states == {"ok": len(outcome.study.trials) - 2, "oom": 1, "diverged": 0, "failed": 1}


def test_a_loss_that_is_not_a_number_is_a_divergence(tmp_path: Path) -> None:
    class Sick(PlantedOracle):
        def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
            found = super().evaluate(request, progress)
            sick = {"loss": float("nan"), "curve": ((1, float("inf")), *found.curve)}
            return dataclasses.replace(found, **sick) if set(request.allocation.formats) == {"hqq2"} else found

    outcome = run(tmp_path, InProcessExecutor(Sick()))
    sick = [e for e in outcome.study.trials if e.result.state is TrialState.DIVERGED]
    assert sick
    assert all(e.loss is None and len(e.result.curve) == 1 for e in sick)


def test_when_every_anchor_fails_the_run_says_why(tmp_path: Path) -> None:
    class Broken(PlantedOracle):
        def evaluate(self, request: Any, progress: Any) -> Any:
            raise RuntimeError("no kernel image")

    with pytest.raises(QRABOError, match=r"calibration.*failed: RuntimeError: no kernel image"):
        run(tmp_path / "a", InProcessExecutor(Broken()))
    with pytest.raises(QRABOError, match=r"every baseline failed.*no kernel image"):
        run(tmp_path / "b", InProcessExecutor(Broken()), calibrate__lr_scales=[1.0])
    assert json.loads((tmp_path / "b" / "status.json").read_text())["state"] == "failed"


class Stubborn(Walk):
    """Proposes one thing for ever."""

    proposal = Proposal(Allocation(("hqq2", "nf4", "hqq2", "nf4"), (1, 2, 1, 2)), Fidelity.HIGH, "evolution")

    def ask(self, n: int) -> list[Proposal]:
        return [self.proposal]


@pytest.mark.parametrize(("asked", "message"), [
    ([Stubborn.proposal], "been told of before"),
    ([Proposal(uniform(4, "nf4", 4), Fidelity.HIGH, "evolution")], "been told of before"),
    ([Proposal(uniform(4, "hqq8", 8), Fidelity.HIGH, "evolution")], r"needs [\d,]+ bytes, over the budget"),
    ([Proposal(uniform(4, "hqq2", 3), Fidelity.HIGH, "evolution")], "off the ladders"),
    ([Proposal(uniform(4, "hqq2", 2), Fidelity.HIGH, "baseline")], "a stage of the engine"),
    *((asked, r"ask must return a list of qra_bo\.trials\.Proposal") for asked in (
        None, Stubborn.proposal, [Stubborn.proposal.allocation], [[0, 1]],
        [Proposal(Stubborn.proposal.allocation, "high", "evolution")]))])
def test_a_searcher_that_breaks_its_contract_is_stopped(tmp_path: Path, asked: Any, message: str) -> None:
    class Bad(Walk):
        def ask(self, n: int) -> list[Proposal]:
            return asked

    with pytest.raises(ContractError, match=message):
        run(tmp_path, searcher=Bad)


@pytest.mark.parametrize("result", [1.0, None, TrialResult(TrialState.OK, "low", None, (), 8, 8, 0, None, 0.0),
                                    TrialResult(TrialState.OK, 1.0, None, (), np.int64(8), 8, 0, None, 0.0)])
def test_an_oracle_whose_result_is_none_is_stopped(tmp_path: Path, result: Any) -> None:
    class Bad(PlantedOracle):
        def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
            return result

    with pytest.raises(ContractError, match=r"evaluate must return a qra_bo\.trials\.TrialResult, its loss a number"):
        run(tmp_path, InProcessExecutor(Bad()))


def test_what_a_searcher_says_of_its_surrogate_is_kept_until_the_search_goes_on(tmp_path: Path) -> None:
    class Judging(Walk):
        def surrogate_check(self) -> dict[str, Any]:
            n = len(self.told)
            return {"observed": [], "predicted": [], "sd": [], "n": n, "spearman": 0.9, "spearman_good": 0.9,
                    "nll": 0.0, "coverage_50": 0.5, "coverage_90": 0.9}

    def checks() -> list[int]:
        events = map(json.loads, (tmp_path / "trials.jsonl").read_text().splitlines())
        return [e["n"] for e in events if e["event"] == "surrogate_check"]

    first = run(tmp_path, searcher=Judging, effort__max_full_trials=14)
    assert checks() == [first.study.surrogate_check.n] == [len(first.study.points)]
    run(tmp_path, searcher=Judging, effort__max_full_trials=14)
    assert len(checks()) == 1
    longer = run(tmp_path, searcher=Judging)
    assert len(checks()) == 2
    assert longer.study.surrogate_check.n == checks()[1] == len(longer.study.points) > checks()[0]


def test_another_configuration_is_refused_and_nothing_written(whole: tuple[Path, RunOutcome]) -> None:
    folder = whole[0]
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}
    with pytest.raises(JournalError, match=r"adapter\.lr was 0.001 and is 0.002"):
        run(folder, adapter__lr=2e-3)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"} == before


def test_other_data_under_the_same_name_is_refused_and_new_packages_are_told(whole: tuple[Path, RunOutcome],
                                                                             tmp_path: Path) -> None:
    lines = (whole[0] / "trials.jsonl").read_bytes().split(b"\n")
    provenance = json.loads(lines[1])
    provenance["packages"]["numpy"] = "1.0"
    provenance["crc"] = checksum(provenance)
    (tmp_path / "trials.jsonl").write_bytes(b"\n".join([lines[0], json.dumps(provenance).encode(), *lines[2:20], b""]))
    with pytest.raises(JournalError, match="data_sha256 was 'd0' and is 'd1'"):
        run(tmp_path, InProcessExecutor(PlantedOracle(data="d1")))
    run(tmp_path)
    assert any("numpy 1.0 ->" in m for m in warnings_of(tmp_path))


def test_other_data_is_refused_before_a_profile_is_measured(whole: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    class Unasked(PlantedOracle):
        def profile(self, progress: Progress) -> SensitivityProfile:
            raise AssertionError("a profile was measured")

    lines = (whole[0] / "trials.jsonl").read_bytes().splitlines(keepends=True)
    begun = next(at for at, line in enumerate(lines, 1) if (event := json.loads(line))["event"] == "stage"
                 and event["stage"] == "profile")
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[:begun]))
    with pytest.raises(JournalError, match="data_sha256 was 'd0' and is 'd1'"):
        run(tmp_path, InProcessExecutor(Unasked(data="d1")))


def test_a_program_that_asks_otherwise_is_refused(whole: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    class Other(Walk):
        def __init__(self, problem: SearchProblem) -> None:
            super().__init__(dataclasses.replace(problem, seed=1))

    raw = (whole[0] / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(raw[:len(raw) // 2])
    with pytest.raises(JournalError, match="its next trial is"):
        run(tmp_path, searcher=Other)


def test_more_hours_go_on_however_long_confirmation_and_final_took(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(PlantedOracle):
        """A trial takes six minutes, one of the confirmation ten hours."""

        def evaluate(self, request: TrialSpec, progress: Any) -> TrialResult:
            now[0] += 36_000 if request.split == "test" else 360
            return super().evaluate(request, progress)

    monkeypatch.setattr(Journal, "elapsed", property(lambda self: now[0]))
    counts = []
    for hours in (2.0, 2.5, 2.5, 2.6):
        now[0] = 0.0
        study = run(tmp_path, InProcessExecutor(Slow()), max_hours=hours).study
        counts.append(sum(e.stage not in UNSEARCHED_STAGES for e in study.trials))
    assert counts == [18, 23, 23, 24]  # of the first 20 trials two are references


class Measured(PlantedOracle):
    """Measures the first allocation over any budget."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: list[Any] = []

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Any) -> dict[str, Any]:
        self.measured.append(allocation)
        found = super().measure_peak(allocation, train_seed, progress)
        return {**found, "measured_bytes": BUDGET + (len(self.measured) == 1)}


def test_the_next_best_is_delivered_with_status_3(tmp_path: Path) -> None:
    outcome = run(tmp_path, InProcessExecutor(Measured()))
    assert outcome.exit_status == 3
    assert outcome.winner == outcome.study.ranked[1].allocation
    assert outcome.best["ranks"] == list(outcome.winner.ranks)
    assert run(tmp_path, InProcessExecutor(Measured())).exit_status == 3


def test_a_worker_elsewhere_saves_into_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(PlantedOracle):
        """Has another working directory than the run, as a worker of a cluster has."""

        def finalise(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            (tmp_path / "elsewhere" / "run").mkdir(parents=True)
            with chdir(tmp_path / "elsewhere"):
                return super().finalise(*args, **kwargs)

    monkeypatch.chdir(tmp_path)
    run(Path("run"), InProcessExecutor(Elsewhere()))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "elsewhere" / "run").iterdir())


def test_the_final_fine_tune_is_done_again_where_its_files_are_gone(tmp_path: Path) -> None:
    oracle = Measured()
    first = run(tmp_path, InProcessExecutor(oracle))
    assert run(tmp_path, InProcessExecutor(oracle)).best == first.best
    assert len(oracle.measured) == 2
    (tmp_path / "quant_manifest.json").unlink()
    again = run(tmp_path, InProcessExecutor(oracle))
    assert oracle.measured[2] == first.winner.to_json()
    assert (tmp_path / "quant_manifest.json").is_file()
    assert again.best == first.best


def test_best_json_is_of_the_allocation_that_is_trained_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    (tmp_path / "quant_manifest.json").unlink()
    again = run(tmp_path, InProcessExecutor(Measured()))  # less memory is free now
    assert (first.exit_status, again.exit_status) == (0, 3)
    assert json.loads((tmp_path / "quant_manifest.json").read_text()) == again.winner.to_json()
    assert again.best["ranks"] == list(again.winner.ranks) != first.best["ranks"]


def test_what_an_oracle_notes_is_a_warning_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = PlantedOracle.describe
    monkeypatch.setattr(PlantedOracle, "describe", lambda self: {**own(self), "notes": ["7 training records are cut"]})
    run(tmp_path)
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert warnings_of(tmp_path).count("7 training records are cut") == 1
    run(tmp_path)
    assert (tmp_path / "trials.jsonl").read_bytes() == raw


def test_listeners_hear_every_event_once_those_of_earlier_sessions_first(whole: tuple[Path, RunOutcome],
                                                                         tmp_path: Path) -> None:
    raw = (whole[0] / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(raw[:len(raw) // 3])
    heard: list[Event] = []
    run(tmp_path, listeners=(heard.append,))
    lines = read_journal(tmp_path / "trials.jsonl").events
    assert [event.kind for event in heard] == [line["event"] for line in lines]
    assert all(as_line(event).items() <= {**line, "time": event.time.isoformat()}.items()
               for event, line in zip(heard, lines, strict=True) if event.kind not in ("header", "calibration"))
