"""What a run takes, by its parts: estimated from operations, and by its first trial; what to run next."""

import io
import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qra_bo.config import load_config
from qra_bo.memory.advice import BITS, MIXING_PAYS
from qra_bo.memory.cards import CARDS
from qra_bo.pipeline import forecast
from qra_bo.pipeline.forecast import (
    FP32_FLOPS,
    LEVEL_SECONDS,
    FirstTrial,
    Part,
    beginning,
    card_of,
    more_steps,
    parts_of,
    recommended,
    token_seconds,
)
from qra_bo.pipeline.prepare import make_setting
from qra_bo.space import uniform
from qra_bo.study.events import Event, FinishedTrial, Stage
from qra_bo.study.header import Given
from qra_bo.study.setting import Setting
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.device import cores

CARD = CARDS["rtx4090"]
def setting(*overrides: str) -> Setting:
    return make_setting(load_config(["device=cpu", "dtype=bfloat16", *overrides]))


def on_gpu(*overrides: str) -> Setting:
    """The same run as on a GPU."""
    of_cpu = setting(*overrides)
    shape = replace(of_cpu.memory.shape, device="cuda")
    return replace(of_cpu, memory=replace(of_cpu.memory, shape=shape))


@pytest.mark.parametrize(("dtype", "fast", "rate", "measured"), [  # tokens a second of a core
    ("bfloat16", False, 6e10, 512 / 5), ("float32", False, 1.2e11, 512 / 2.6)])
def test_seconds_on_a_cpu_follow_from_the_operations(dtype: str, fast: bool, rate: float, measured: float,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    monkeypatch.setattr(forecast, "multiplies_bf16", lambda: fast)
    seconds = token_seconds(setting("+model=smollm2_135m", f"dtype={dtype}"))
    assert 1 / seconds == pytest.approx(2 * rate / (4 * 106_168_320 + 6 * 49_152 * 576))
    assert 1 / seconds == pytest.approx(2 * measured, rel=0.05)
    assert token_seconds(setting("oracle=synthetic")) is None


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


@pytest.mark.parametrize(("final", "tokens"), [
    (["final.steps=10"], (10 * 4 + (40 + 40) / 3) * 128), (["final.epochs=2"], None),
    (["final.max_steps=5"], (5 * 4 + (40 + 40) / 3) * 128)])
def test_parts_of_a_search_by_hand(final: list[str], tokens: float | None) -> None:
    run = replace(setting("+model=tiny", "data=tiny", *final), sequences=40.0)
    search, confirmation, last = parts_of(run)
    effort, each = run.config.effort, run.full_trial_tokens
    assert search.tokens == (effort.max_full_trials + 2 * effort.references) * each
    assert confirmation.tokens >= 3 * 5 * each
    steps = round(2 * 40.0 / 4)
    validations = len(run.config.final.validations(steps))
    assert last.tokens == pytest.approx((steps * 4 + (validations + 1) * 40 / 3) * 128 if tokens is None else tokens)


def test_cards_share_the_final_fine_tune() -> None:
    words = ["+model=tiny", "data=tiny", "final.steps=10", "train.batch=1", "train.accumulate=2"]
    assert [parts_of(on_gpu(*words, f"executor.workers={n}"))[-1].workers for n in (1, 2, 3)] == [1, 2, 2]


def test_a_prediction_takes_profile_comparison_and_final_fine_tune(tmp_path: Path) -> None:
    words = ["+model=tiny", "data=tiny", "effort=instant", "effort.references=true", "final.steps=3"]
    run = setting(*words)
    profile, check, beside, _ = parts_of(run)
    arms = 2 + len(run.config.calibrate.lr_scales)  # the uniform choice at every rate
    assert arms * run.full_trial_tokens <= 2 * check.tokens <= 2 * arms * run.full_trial_tokens
    assert beside == Part("QLoRA", run.trial_tokens(24, "test"))
    size = run.config.data.calibration * run.config.train.length
    passes = 1 + sum(f.bits < 16 for f in run.space.formats) * sum(1 - u / 4 for u in range(4))  # from each layer on
    assert profile.tokens == pytest.approx(size + (run.code_tokens + size * passes) / 3)
    shorter, *_ = parts_of(setting(*words, "profiling=gradients"))  # 7 passes backward, which count twice
    assert shorter.tokens == pytest.approx(size + (run.code_tokens + size * 20) / 3)


def trial(state: TrialState, seconds: float, switch: float) -> Event:
    spec = TrialSpec(uniform(2, "nf4", 4), 8, 8, 0, 2e-3)
    result = TrialResult(state, 3.0, .1, (), 8, 800, 600, None, seconds, switch)
    finished = Trial(1, spec.allocation, (4, 4), "baseline", Fidelity.HIGH, spec, 0, result, 1)
    return Event("trial", FinishedTrial(finished, 0.0, 1), datetime(2026, 1, 1))


@pytest.mark.parametrize(("workers", "search", "whole"), [(1, "17 min", "25 min"), (4, "4 min", "12 min")])
def test_the_first_timed_trial_gives_the_times(workers: int, search: str, whole: str) -> None:
    out = io.StringIO()
    first = FirstTrial([Part("search", 100_000, workers), Part("final", 50_000)], Console(file=out, width=400))
    first(Event("stage", Stage("search", "start"), datetime(2026, 1, 1)))
    first(trial(TrialState.OOM, 9, 1))
    assert out.getvalue() == ""
    first(trial(TrialState.OK, 12, 2))  # 800 + 600 / 3 = 1,000 tokens in 10 seconds
    first(trial(TrialState.OK, 50, 2))
    assert out.getvalue() == (f"By the first trial (100 tokens a second): search: about {search}; final: about 8 min; "
                              f"in all about {whole}\n")


@pytest.mark.parametrize(("words", "sequences", "effort"), [
    (["final.steps=1000"], 4000.0, "quick"), (["final.steps=3000"], 4000.0, "normal"), (["final.steps=8"], 40.0, None),
    (["final.steps=24"], 4000.0, None), (["final.steps=100000"], 4000.0, "thorough"),
    (["oracle=synthetic"], 40.0, None)])
def test_a_search_is_recommended_where_it_costs_no_more_than_the_training(words: list[str], sequences: float,
                                                                         effort: str | None) -> None:
    run = replace(setting("+model=smollm2_135m", "device=cpu", *words), sequences=sequences)
    assert (recommended(run, MIXING_PAYS), recommended(run, BITS)) == (effort, None)


@pytest.mark.parametrize(("words", "sequences", "epochs", "accumulate"), [
    ([], 10.0, "10", None), ([], 50.0, "2", None), ([], 4000.0, None, None), (["final.steps=3"], 10.0, None, None),
    (["final.max_steps=2"], 90.0, None, None), (["final.epochs=5"], 20.0, None, None), ([], None, None, None),
    (["train.accumulate=16"], 40.0, "3", "1"), (["train.accumulate=16"], 1.0, "10", "1"),
    (["train.accumulate=16", "train.batch=1"], 33.0, "3", "3"),
    (["final.epochs=30"], 2.0, None, None)])
def test_a_final_fine_tune_of_few_steps_gets_more(words: list[str], sequences: float | None, epochs: str | None,
                                                  accumulate: str | None) -> None:
    changes, _ = more_steps(replace(setting("+model=tiny", "data=tiny", *words), sequences=sequences))
    assert (changes.get("final.epochs"), changes.get("train.accumulate")) == (epochs, accumulate)


@pytest.mark.parametrize(("sequences", "words", "tokens"), [
    (None, [], 120 * 128), (1000.0, [], 120 * 128), (40.0, [], 40 * 128), (40.0, ["quantizer.rounding=rtn"], 0)])
def test_choosing_codes_is_part_of_a_fine_tune(sequences: float | None, words: list[str], tokens: int) -> None:
    run = replace(setting("+model=smollm2_135m", *words), sequences=sequences)
    start, *codes = beginning(replace(run, given=Given((uniform(30, "nf4", 4),), "", 2e-3, "")))
    assert [part.tokens for part in codes] == [tokens] * (tokens > 0)  # 10 tokens for each of 1,536 inputs
    of_inputs = 30 * (3 * 576**2 * (tokens + 2 * 576) + 1536**2 * (tokens + 2 * 1536))  # no trellis in this allocation
    taken = LEVEL_SECONDS * run.memory.spec.linear_numel + of_inputs / FP32_FLOPS
    assert [part.seconds for part in codes] == pytest.approx([taken / cores()] * (tokens > 0))
    assert start.tokens == pytest.approx(min(128, sequences or math.inf) * 128 / 3)
    assert beginning(run)[0] == start
