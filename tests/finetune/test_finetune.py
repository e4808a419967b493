"""The oracle on the tiny model with real quantisers, PEFT and training."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qra_bo.finetune import profiling
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.data.load import byte_tokenizer, load_data
from qra_bo.finetune.data.options import TinyData
from qra_bo.finetune.oracle import FinetuneOracle, FinetuneSettings, unit_choice
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.finetune.training.trial_run import CheckpointStore
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.oracle.protocol import Progress, StopRequested, quiet
from qra_bo.sensitivity.profile import profile_to_json
from qra_bo.space import Allocation, CostTable, SearchSpace, make_units, uniform
from qra_bo.space.decoder import spec_from_model
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from tests.finetune.models import failing, tiny_llama

FORMATS = tuple(parse_format(name) for name in ("hqq3", "nf4", "int8"))
DATA = load_data(TinyData(name="tiny", kind="tiny", held_out=0.2, max_records=64, calibration=4), byte_tokenizer(), 32)
CPU = torch.device("cpu")
PHASES = ["load", "forward", "backward", "step", "evaluation"]


def make(folder: Path | None = None, checkpoint_seconds: float = 1e9, base: Any = None,
         **train: object) -> FinetuneOracle:
    model = tiny_llama(vocab=512)[0] if base is None else base
    spec = spec_from_model(model, "tiny")
    trainer = TrainSettings(**{"batch": 2, "logits_chunk": 16, **train})  # type: ignore[arg-type]
    settings = FinetuneSettings(trainer, 2.0, 4, checkpoint_seconds=checkpoint_seconds)
    bank = LayerBank(model, spec, FORMATS, torch.float32, CPU)
    store = None if folder is None else CheckpointStore(folder)
    data = replace(DATA, validation=DATA.validation.take(4), test=DATA.test.take(4))
    return FinetuneOracle(data, make_units(spec, "layer"), FORMATS, bank, settings, {}, checkpoints=store)


def comparable(m: TrialResult) -> TrialResult:
    """A measurement without times and measured bytes."""
    return replace(m, seconds=0, switch_seconds=0, measured_bytes=None, peaks={})


MIXED = Allocation(("hqq3", "int8"), (3, 1))
REQUEST = TrialSpec(MIXED, 8, 8, 5, 5e-3)


@pytest.fixture(name="whole", scope="module")
def uninterrupted() -> TrialResult:
    return make().evaluate(REQUEST, quiet)


def test_the_same_trial_gives_the_same_result(whole: TrialResult) -> None:
    oracle = make()
    first = oracle.evaluate(REQUEST, quiet)
    oracle.evaluate(replace(REQUEST, allocation=uniform(2, "nf4", 2)), quiet)
    again = oracle.evaluate(REQUEST, quiet)
    assert first.state is TrialState.OK
    assert first.loss == again.loss == whole.loss
    assert first.curve == again.curve == ((8, first.loss),)
    assert first.new_steps == 8
    assert first.training_tokens == 8 * 2 * 32
    assert first.forward_tokens == 4 * 32
    assert oracle.evaluate(replace(REQUEST, train_seed=6), quiet).loss != first.loss


def test_a_promotion_costs_its_additional_steps_alone(tmp_path: Path, whole: TrialResult) -> None:
    oracle = make(tmp_path)
    low = oracle.evaluate(replace(REQUEST, steps=4), quiet)
    high = oracle.evaluate(REQUEST, quiet)
    assert (low.new_steps, high.new_steps) == (4, 4)
    assert high.loss == whole.loss
    assert low.training_tokens + high.training_tokens == whole.training_tokens


def test_trials_that_accumulate_see_the_same_text_and_promote_alike(tmp_path: Path) -> None:
    request = replace(REQUEST, steps=4, schedule_steps=4)
    whole = make(accumulate=2).evaluate(request, quiet)
    assert whole.training_tokens == 4 * 2 * 2 * 32
    oracle = make(tmp_path, accumulate=2)
    low = oracle.evaluate(replace(request, steps=2), quiet)
    high = oracle.evaluate(request, quiet)
    assert (low.new_steps, high.new_steps, high.loss) == (2, 2, whole.loss)
    assert low.training_tokens + high.training_tokens == whole.training_tokens
    single = make(batch=4).evaluate(request, quiet)  # the same sequences in one batch
    assert single.training_tokens == whole.training_tokens
    assert single.loss == pytest.approx(whole.loss, abs=1e-5)
    alone = make().evaluate(request, quiet).peaks
    assert whole.peaks["forward"]["allocated"] > alone["forward"]["allocated"], "gradients of a batch before are alive"


def test_an_interrupted_trial_resumes_to_the_same_result(tmp_path: Path, whole: TrialResult,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make(tmp_path, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(UnitwiseAdamW, "step", failing(UnitwiseAdamW.step, 6, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            oracle.evaluate(REQUEST, quiet)
    (path,) = tmp_path.glob("*.safetensors")
    cut_off = CheckpointStore(tmp_path).load(path.stem, REQUEST.steps)
    CheckpointStore(tmp_path).save(path.stem, replace(cut_off, seconds=1000.0))
    resumed = make(tmp_path).evaluate(REQUEST, quiet)
    assert comparable(resumed) == comparable(whole)
    assert 1000 < resumed.seconds < 1600  # what went before counts
    again = make(tmp_path).evaluate(REQUEST, quiet)  # finished, and the journal's line lost
    assert comparable(again) == comparable(whole)


@pytest.mark.parametrize("at", [1, 8])
def test_a_stopped_trial_keeps_its_last_step(tmp_path: Path, at: int, whole: TrialResult) -> None:
    oracle = make(tmp_path)

    def stop(what: str, done: int, total: int) -> None:
        if done == at:
            raise StopRequested

    with pytest.raises(StopRequested):
        oracle.evaluate(REQUEST, stop)
    steps: list[int] = []
    resumed = make(tmp_path).evaluate(REQUEST, lambda what, done, total: steps.append(done))
    assert steps == list(range(at + 1, 9))
    assert comparable(resumed) == comparable(whole)


def test_divergence_is_a_result_and_the_next_trial_is_normal(whole: TrialResult) -> None:
    oracle = make()
    bad = oracle.evaluate(replace(REQUEST, learning_rate=1e27), quiet)
    assert (bad.state, bad.loss) == (TrialState.DIVERGED, None)
    assert "step" in bad.message
    assert bad.training_tokens > 0 or bad.new_steps == 0
    assert oracle.evaluate(REQUEST, quiet).loss == whole.loss


@pytest.mark.parametrize(("error", "message"), [
    (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "CUDA out of memory."),
    (MemoryError(), "MemoryError")])
def test_out_of_memory_is_a_result(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make()

    def starve(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("qra_bo.finetune.oracle.train_step", starve)
        starved = oracle.evaluate(REQUEST, quiet)
        unmeasured = oracle.measure_peak(MIXED.to_json(), 0, quiet)
    assert (starved.state, starved.message) == (TrialState.OOM, message)
    assert unmeasured == {"state": "oom", "message": message, "measured_bytes": None, "peaks": {}}
    assert oracle.evaluate(REQUEST, quiet).state is TrialState.OK


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_measured_peak_is_the_predicted_one(checkpointing: bool) -> None:
    oracle = make(checkpointing=checkpointing)
    found = oracle.measure_peak(MIXED.to_json(), 0, quiet)
    shape = TrainShape(2, 32, checkpointing, 4, logits_chunk=16)
    memory = MemoryModel(oracle.bank.spec, shape)
    space = SearchSpace(oracle.units, FORMATS, (1, 2, 3, 4))
    row = space.encode(MIXED)[None]
    predicted = int(memory.table(space).totals(row)[0])
    assert found["measured_bytes"] <= predicted * 1.005
    assert predicted <= found["measured_bytes"] * 1.05
    by_phase = {p.name: int(CostTable((p,)).totals(row)[0]) for p in memory.phases(space)}
    assert list(found["peaks"]) == [*by_phase, "evaluation"] == PHASES
    for phase, size in found["peaks"].items():
        assert size["reserved"] is None  # there is no allocator that reserves on a CPU
        if not checkpointing or phase in ("backward", "evaluation"):  # the others are priced at their largest moments
            assert size["allocated"] <= by_phase.get(phase, predicted) * 1.005
    measured = [size["allocated"] for phase, size in found["peaks"].items() if phase != "load"]
    assert found["measured_bytes"] == max(measured)


def test_every_trial_records_the_peak_of_every_phase() -> None:
    oracle = make()
    first = oracle.evaluate(REQUEST, quiet)
    assert list(first.peaks) == PHASES
    assert first.measured_bytes == max(first.peaks[phase]["allocated"] for phase in PHASES[1:])
    assert oracle.evaluate(REQUEST, quiet).peaks == first.peaks
    larger = oracle.evaluate(replace(REQUEST, allocation=uniform(2, "int8", 4)), quiet)
    assert all(larger.peaks[phase]["allocated"] > first.peaks[phase]["allocated"] for phase in PHASES)
    single = oracle.evaluate(replace(REQUEST, steps=1), quiet)  # the moments are not yet there at its only step
    assert (list(single.peaks), single.measured_bytes) == (["load"], None)


def test_what_is_stored_is_measured_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make()
    oracle.settings = replace(oracle.settings, scope="stored")
    trained = oracle.evaluate(REQUEST, quiet)
    monkeypatch.setattr("qra_bo.finetune.oracle.train_step", lambda *_: pytest.fail("it trains"))
    found = oracle.measure_peak(MIXED.to_json(), 0, quiet)
    assert found["measured_bytes"] == trained.measured_bytes == 2 * sum(
        rank * (linear.in_features + linear.out_features) for unit, rank in zip(oracle.units, MIXED.ranks, strict=True)
        for linear in unit.linears) + oracle.bank.stored_bytes(unit_choice(oracle.units, MIXED.formats))
    assert list(found["peaks"]) == list(trained.peaks) == ["load"]


@pytest.mark.parametrize("by_gradients", [False, True])
def test_profile_has_both_sensitivities(by_gradients: bool) -> None:
    oracle = make()
    oracle.settings = replace(oracle.settings, by_gradients=by_gradients)
    profile = oracle.profile(quiet)
    assert profile.quantization_sensitivity.shape == profile.quantization_kl.shape == (2, 3)
    assert (profile.quantization_kl[:, 0] > profile.quantization_kl[:, 2]).all()  # 3 bits distort more than 8
    assert profile.require_rank_sensitivity().shape == (2, 4)
    assert oracle.profile_cost["training_tokens"] == 4 * 32
    oracle.evaluate(REQUEST, quiet)  # leaves its own layers in place, which the sensitivities must not see
    again = oracle.profile(quiet)
    assert np.array_equal(again.require_rank_sensitivity(), profile.require_rank_sensitivity())
    assert np.array_equal(again.quantization_sensitivity, profile.quantization_sensitivity)


def test_a_killed_profile_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []

    def count(name: str, real: Callable[..., Any]) -> None:
        monkeypatch.setattr(profiling, name, lambda *args: passes.append(name) or real(*args))

    count("hidden_states", profiling.hidden_states)
    count("each_gradient", profiling.each_gradient)

    def measured(folder: Path, progress: Progress = quiet) -> tuple[dict[str, Any], dict[str, int], Counter[str]]:
        passes.clear()
        oracle = make()
        oracle.profiles = TensorStore(folder, {})
        profile = oracle.profile(progress)
        return profile_to_json(profile), oracle.profile_cost, Counter(passes)

    def killed_at(activity: str, number: int) -> Progress:
        def progress(what: str, done: int, total: int) -> None:
            if (what, done) == (activity, number):
                raise KeyboardInterrupt
        return progress

    whole, cost, all_passes = measured(tmp_path / "whole")
    cut = tmp_path / "cut"
    for activity, number in (("profile: rank sensitivity", 1), (profiling.QUANTIZATION, 3)):
        with pytest.raises(KeyboardInterrupt):
            measured(cut, killed_at(activity, number))
    profile, same_cost, left = measured(cut)
    assert (profile, same_cost) == (whole, cost)
    assert all_passes - left == Counter(hidden_states=3 * len(FORMATS), each_gradient=2)
    assert measured(cut)[2] == Counter()


def test_untuned_is_the_dense_model_whatever_was_trained_before(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make()
    first = oracle.untuned("test", quiet)
    with monkeypatch.context() as patch:
        patch.setattr(type(oracle.bank), "streams", True)
        assert oracle.untuned("test", quiet)["loss"] == pytest.approx(first["loss"], abs=1e-5)
    oracle.evaluate(REQUEST, quiet)
    assert oracle.untuned("test", quiet) == first
    blocks = DATA.test.take(4)
    ids, goal = torch.from_numpy(blocks.input_ids), torch.from_numpy(blocks.labels)[:, 1:]
    with torch.no_grad():
        logits = oracle.model(input_ids=ids).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), goal, ignore_index=-100)
    assert first["loss"] == pytest.approx(float(expected), abs=1e-4)
    assert (first["forward_tokens"], first["text"]) == (ids.numel(), "")  # it has no tokenizer
    assert oracle.untuned("validation", quiet)["loss"] != first["loss"]
