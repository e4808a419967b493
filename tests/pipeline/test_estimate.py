"""Time of a run: estimated from operations and the device, and printed again once a trial has been timed."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from qra_bo.config import load_config
from qra_bo.memory.cards import CARDS
from qra_bo.memory.speed import step_seconds
from qra_bo.pipeline import estimate
from qra_bo.pipeline.estimate import FirstTrial, basis, card_of, token_seconds, typical
from qra_bo.pipeline.forecast import plan_rows
from qra_bo.pipeline.run import _announced, make_setting
from qra_bo.report.tables import PlanRow
from qra_bo.space import uniform
from qra_bo.study import Setting
from qra_bo.study.given import Given
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState

CARD = CARDS["rtx4090"]


def setting(*overrides: str) -> Setting:
    return make_setting(load_config(["device=cpu", "dtype=bfloat16", *overrides]))


def on_gpu(*overrides: str) -> Setting:
    """The same run as on a GPU."""
    of_cpu = setting(*overrides)
    shape = replace(of_cpu.memory.shape, device="cuda")
    return replace(of_cpu, memory=replace(of_cpu.memory, shape=shape))


@pytest.mark.parametrize(("dtype", "fast", "rate", "measured"), [  # tokens a second of a core
    ("bfloat16", True, 2e11, 675 / 2), ("bfloat16", False, 6e10, 512 / 5), ("float32", False, 1.2e11, 512 / 2.6)])
def test_seconds_on_a_cpu_follow_from_the_operations(dtype: str, fast: bool, rate: float, measured: float,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "cores", lambda: 2)
    monkeypatch.setattr(estimate, "multiplies_bf16", lambda: fast)
    seconds = token_seconds(setting("+model=smollm2_135m", f"dtype={dtype}"))
    assert seconds is not None
    assert 1 / seconds == pytest.approx(2 * rate / (4 * 106_168_320 + 6 * 49_152 * 576))
    assert 1 / seconds == pytest.approx(2 * measured, rel=0.05)
    assert token_seconds(setting("oracle=synthetic")) is None


def test_seconds_on_a_gpu_need_the_card_and_follow_the_given_allocation() -> None:
    run = on_gpu("+model=tiny", "data=tiny")
    assert token_seconds(run) is None
    assert token_seconds(run, CARD) == step_seconds(run.memory, run.space, typical(run.space), CARD) / \
        run.memory.shape.tokens
    wide = uniform(4, "int8", 32)
    given = replace(run, given=Given((wide,), "", 1.0, ""))
    assert token_seconds(given, CARD) == step_seconds(run.memory, run.space, wide, CARD) / run.memory.shape.tokens


@pytest.mark.parametrize(("budget", "said"), [(10**10, "10.0 GB"), (1_627_712, "1.63 MB"), (180_000, "180.0 kB")])
def test_a_plans_title_states_the_budget_in_its_unit(budget: int, said: str) -> None:
    out = io.StringIO()
    _announced(setting("+model=tiny", "data=tiny"), budget, None, Console(file=out, width=1000))
    assert f"Plan: tiny within {said}, effort=normal; " in out.getvalue()


def test_the_share_of_the_final_fine_tune_counts_the_profile() -> None:
    profile, final = plan_rows(setting("+model=tiny", "data=tiny", "effort=instant", "final.steps=2"))
    assert f"; {100 * final.cost / (profile.cost + final.cost):.0f} % of the whole)" in final.what


def test_the_card_is_the_one_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["NVIDIA GeForce RTX 4090", "Tesla T4", "GeForce GT 710"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_name", names.__getitem__)
    run = on_gpu("+model=tiny", "data=tiny")

    def found(device: str) -> Any:
        return card_of(replace(run, config=run.config.with_changes(device=device)))

    assert [found(device) for device in ("cuda", "cuda:1", "cuda:2", "cuda:3")] == [CARD, CARDS["t4"], None, None]
    assert card_of(replace(run, config=run.config.with_changes(gpu="h100"))) is CARDS["h100"]
    assert card_of(setting("+model=tiny", "data=tiny")) is None


def test_a_plan_for_a_gpu_says_that_it_was_not_measured() -> None:
    run = replace(on_gpu("+model=tiny", "data=tiny"), sequences=40.0)
    assert "GeForce RTX 4090" in basis(run, CARD)
    assert basis(run, CARD).endswith("not measured on a GPU")
    assert basis(run, None) == "times are known after the first trial"
    assert all(row.seconds == pytest.approx(row.cost * (token_seconds(run, CARD) or 0))
               for row in plan_rows(run, CARD))


def test_a_given_allocation_plans_the_final_fine_tune_alone() -> None:
    given = Given((uniform(4, "nf4", 4),), "", 1.0, "")
    run = replace(setting("+model=tiny", "data=tiny", "final.steps=3"), given=given)
    assert [row.what for row in plan_rows(run)] == ["final fine-tune (3 steps)"]


def test_a_prediction_plans_profile_comparison_and_final_fine_tune() -> None:
    run = setting("+model=tiny", "data=tiny", "effort=instant", "effort.compare=[uniform,untuned]", "final.steps=3")
    profile, beside, final = plan_rows(run)
    assert (profile.what, beside.what) == ("profile", "comparison on one seed (2 allocations)")
    assert final.what.startswith("final fine-tune (3 steps; ")
    assert beside.cost == 2 * run.full_trial_tokens
    size = run.config.data.calibration * run.config.train.length
    passes = 1 + sum(f.bits < 16 for f in run.space.formats) * sum(1 - u / 4 for u in range(4))  # from each layer on
    trained, forward = run.tokens_before
    assert profile.cost == pytest.approx(trained + size + (forward + size * passes) / 3)
    assert profile.seconds > profile.cost * (token_seconds(run) or 0)  # codes take time, and no tokens
    profile = plan_rows(on_gpu("+model=tiny", "data=tiny", "effort=instant"), CARD)[0]
    assert profile.seconds == pytest.approx(profile.cost * (token_seconds(on_gpu("+model=tiny"), CARD) or 0))


def trial(state: TrialState, seconds: float, switch: float) -> dict[str, Any]:
    spec = TrialSpec(uniform(2, "nf4", 4), 8, 8, 0, 2e-3)
    result = TrialResult(state, 3.0, .1, (), 8, 800, 600, None, seconds, switch)
    return Trial(1, spec.allocation, (4, 4), "baseline", Fidelity.HIGH, spec, 0, result, 1).to_json()


def test_the_first_timed_trial_corrects_the_plan() -> None:
    out = io.StringIO()
    first = FirstTrial([PlanRow("search", 100_000, 50.0), PlanRow("final", 50_000, 25.0)], Console(file=out, width=400))
    first({"event": "stage"})
    first(trial(TrialState.OOM, 9, 1))
    assert out.getvalue() == ""
    first(trial(TrialState.OK, 12, 2))  # 800 + 600 / 3 = 1,000 tokens in 10 seconds
    first(trial(TrialState.OK, 50, 2))
    assert out.getvalue() == ("Times by the first trial (100 tokens a second, 20.0 times the estimate): search: about "
                              "17 min; final: about 8 min; in all about 25 min\n")


def test_workers_share_all_but_the_final_fine_tune() -> None:
    out = io.StringIO()
    first = FirstTrial([PlanRow("search", 100_000, 50.0), PlanRow("final", 50_000, 25.0)], Console(file=out, width=400))
    first(trial(TrialState.OK, 12, 2) | {"workers": 4})
    assert out.getvalue() == ("Times by the first trial (100 tokens a second, 10.0 times the estimate): search: about "
                              "4 min; final: about 8 min; in all about 12 min\n")
    run = replace(on_gpu("+model=tiny", "data=tiny"), sequences=40.0)
    many = replace(run, config=run.config.with_changes(executor=run.config.executor.with_changes(workers=4)))
    ratios = [a.seconds / b.seconds for a, b in zip(plan_rows(run, CARD), plan_rows(many, CARD), strict=True)]
    assert ratios == pytest.approx([*[4] * (len(ratios) - 1), 1])
    assert [row.seconds for row in plan_rows(setting("+model=tiny", "data=tiny", "executor.workers=4"))] == \
        [row.seconds for row in plan_rows(setting("+model=tiny", "data=tiny"))]  # they share the cores


def test_without_an_estimate_the_first_trial_gives_one() -> None:
    out = io.StringIO()
    FirstTrial([PlanRow("search", 1000, None), PlanRow("final", 0, None)], Console(file=out, width=400))(
        trial(TrialState.OK, 10, 0))
    assert out.getvalue() == "Times by the first trial (100 tokens a second): search: about 10 s; in all about 10 s\n"
