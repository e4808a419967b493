"""The final fine-tune: its length, its curve, the adapter it delivers, and how it continues after a kill."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qra_bo.finetune.training.loop import HeldOut, train_step
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.oracle.protocol import TRAINING, activity
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec
from tests.finetune.models import FINAL, failing, final_options
from tests.finetune.test_finetune import MIXED, REQUEST, make, quiet

NODE = {"name": "tiny", "source": "random", "n_layers": 2}


def test_length_is_epochs_up_to_a_limit() -> None:
    assert FINAL.with_changes(steps=7).length(1e9, 1) == 7
    assert FINAL.with_changes(epochs=2.0).length(100, 8) == 25
    assert FINAL.with_changes(epochs=2.0, max_steps=20).length(100, 8) == 20
    assert FINAL.with_changes(epochs=0.001).length(100, 8) == 1


def test_validations_end_with_the_training() -> None:
    assert FINAL.validations(8) == (8,)
    assert FINAL.validations(24) == (12, 24)
    assert FINAL.validations(96) == (25, 50, 75, 96)
    assert FINAL.validations(1000) == tuple(range(100, 1001, 100))
    assert FINAL.with_changes(validate_every=3).validations(6) == (3, 6)


def test_patience_counts_validations_without_a_lower_loss() -> None:
    falling, rising = [(1, 3.0), (2, 2.0)], [(1, 3.0), (2, 2.0), (3, 2.0), (4, 2.5)]
    assert not FINAL.with_changes(patience=1).ended(falling)
    assert FINAL.with_changes(patience=2).ended(rising)
    assert not FINAL.with_changes(patience=3).ended(rising)
    assert not FINAL.ended(rising)
    assert (FINAL.kept(rising), FINAL.with_changes(keep="last").kept(rising)) == (2, 4)


def finalise(out: Path, oracle: Any = None, progress: Callable[..., None] = quiet, **options: Any) -> dict[str, Any]:
    """A short fine-tune whose validation loss is made to rise after step 6."""
    out.mkdir(exist_ok=True)
    oracle = oracle or make(out)
    held_out = oracle._held_out

    def rising(split: str, run: Any, probe: Any) -> Any:
        found = held_out(split, run, probe)
        return found if split == "test" else HeldOut(((5 + abs(run.at.step - 6) / 10, 1, 0),), found.tokens)

    oracle._held_out = rising
    found: dict[str, Any] = oracle.finalise(
        MIXED.to_json(), final_options(**{"steps": 12, "validate_every": 2, **options}), 5, 5e-3, str(out), NODE,
        progress)
    return dict(json.loads(json.dumps(found)))  # it goes through a pipe


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_adapter_is_delivered(tmp_path: Path) -> None:
    best, last = finalise(tmp_path / "best"), finalise(tmp_path / "last", keep="last")
    assert best["curve"] == last["curve"] == [[2, 5.4], [4, 5.2], [6, 5.0], [8, 5.2], [10, 5.4], [12, 5.6]]
    assert (best["kept_step"], best["steps"], best["planned_steps"]) == (6, 12, 12)
    assert (last["kept_step"], last["steps"], last["planned_steps"]) == (12, 12, 12)
    assert not same(adapter(tmp_path / "best"), adapter(tmp_path / "last"))
    assert best["loss"] != last["loss"]
    early = finalise(tmp_path / "early", patience=1)  # it ends at step 8: the adapter is that of the same step
    assert (early["kept_step"], early["steps"], early["planned_steps"]) == (6, 8, 12)
    assert early["curve"] == best["curve"][:4]
    assert early["training_tokens"] == 8 * 2 * 32
    assert same(adapter(tmp_path / "early"), adapter(tmp_path / "best"))
    assert early["loss"] == best["loss"]


def test_progress_has_the_mean_loss_of_ten_steps_and_the_latest_validation(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    told: list[list[float]] = []
    said: list[str] = []

    def recorded(*args: Any) -> tuple[float, int]:
        found = train_step(*args)
        losses.append(found[0])
        return found

    monkeypatch.setattr("qra_bo.finetune.oracle.train_step", recorded)
    found = finalise(tmp_path / "run", progress=lambda what, at, total: told.append(
        [float(n) for n in re.findall(r"\d+\.\d+", what)]) if activity(what) == TRAINING else said.append(what))
    assert [t[0] for t in told] == pytest.approx([np.mean(losses[max(0, n - 10):n]) for n in range(1, 13)], abs=1e-4)
    assert losses[-1] < losses[0]
    assert found["training"] == [[step, loss] for step, loss in enumerate(losses, 1)]
    assert [t[1:] for t in told] == [[]] * 2 + [[loss] for loss in (5.4, 5.2, 5.0, 5.2, 5.4) for _ in range(2)]
    assert said[-1] == "test (validation loss 5.6000 after 12 steps)"


@pytest.mark.parametrize(("dies_at", "patience"), [(3, None), (8, 2), (12, None)])
def test_a_killed_final_fine_tune_continues_to_the_same_result(dies_at: int, patience: int | None, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finalise(tmp_path / "whole", patience=patience)
    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(UnitwiseAdamW, "step", failing(UnitwiseAdamW.step, dies_at, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finalise(killed, make(killed, checkpoint_seconds=0.0), patience=patience)
    done: list[int] = []
    again = finalise(killed, make(killed), lambda what, at, total: done.append(at), patience=patience)
    assert done == [*range(dies_at, whole["steps"] + 1), 0]  # the test comes last
    assert again == whole
    assert same(adapter(killed), adapter(tmp_path / "whole"))
    finished = finalise(killed, make(killed), patience=patience)  # and the journal's line was lost
    assert finished == whole


@pytest.mark.parametrize(("steps", "again"), [(4, 8), (6, 6), (8, 12)])
def test_final_fine_tune_goes_on_from_a_trial_before_its_first_validation(steps: int, again: int,
                                                                          tmp_path: Path) -> None:
    whole, folder = finalise(tmp_path / "whole", validate_every=6), tmp_path / "after"
    folder.mkdir()
    oracle = make(folder)
    oracle.evaluate(TrialSpec(MIXED, steps, 12, 5, 5e-3), quiet)
    done: list[int] = []
    found = finalise(folder, oracle, lambda what, at, total: done.append(at), validate_every=6)
    assert done == [*range(13 - again, 13), 0]
    assert found == {**whole, "training_tokens": again * 2 * 32}
    assert same(adapter(folder), adapter(tmp_path / "whole"))


def test_one_worker_removes_the_checkpoints_of_another(tmp_path: Path) -> None:
    requests = [replace(REQUEST, train_seed=seed) for seed in (5, 6)]
    oracles = [make(tmp_path) for _ in requests]
    for oracle, request in zip(oracles, requests, strict=True):
        oracle.evaluate(request, quiet)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    oracles[0].forget(quiet, [request.training for request in requests])
    assert not list(tmp_path.glob("*.safetensors"))


def test_checkpoints_that_nothing_can_continue_are_removed(tmp_path: Path) -> None:
    oracle = make(tmp_path)

    def kept() -> set[str]:
        return {path.stem for path in tmp_path.glob("*.safetensors")}

    low = replace(REQUEST, steps=4)
    oracle.evaluate(low, quiet)
    other = replace(REQUEST, allocation=uniform(2, "nf4", 2))
    oracle.evaluate(other, quiet)
    assert kept() == {low.training, other.training}  # a promotion continues the first; the second may not be journaled
    failing = replace(low, learning_rate=1e27)
    oracle.evaluate(failing, quiet)
    assert kept() == {low.training}
    high = oracle.evaluate(REQUEST, quiet)
    assert (high.new_steps, kept()) == (4, {REQUEST.training})
    out = tmp_path / "delivered"
    out.mkdir()
    oracle.finalise(MIXED.to_json(), final_options(steps=2), 5, 5e-3, str(out), NODE, quiet)
    (final,) = kept()
    assert final.startswith("final-")
    oracle.forget(quiet)
    assert kept() == set()
