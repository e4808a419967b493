import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qra_bo.finetune.training.trial_run import Checkpoint, CheckpointStore
from tests.damage import DAMAGES


def _checkpoint(step: int, target: int) -> Checkpoint:
    return Checkpoint(step, target, 2, 100, 30, 7.5, ((2, 4.5), (3, 4.25)), {"a|master": torch.arange(3.0)})


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new")
    store.save("x", _checkpoint(4, 8))
    loaded = store.load("x", 8)
    assert torch.equal(loaded.state["a|master"], torch.arange(3.0))
    assert (loaded.step, loaded.target, loaded.first) == (4, 8, 2)
    assert (loaded.training_tokens, loaded.forward_tokens) == (100, 30)
    assert loaded.curve == ((2, 4.5), (3, 4.25))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]
    assert store.load("x", 7) is store.load("y", 8) is None  # of more steps, of another training


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_never_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    for name in ("x", "y"):
        store.save(name, _checkpoint(4, 8))
    for seed in range(8):
        for name in ("x", "y"):
            store.save(name, replace(_checkpoint(4, 8), seconds=float(name == "y")))
        DAMAGES[damage]([tmp_path / "x.safetensors", tmp_path / "y.safetensors"], random.Random(seed))
        found = [store.load(name, 8) for name in ("x", "y")]
        if damage == "folder":
            (tmp_path / "x.safetensors").rmdir()
            (tmp_path / "y.safetensors").rmdir()
        assert found == [None, None]
        assert "can't be used, and the training begins anew" in caplog.text
        caplog.clear()


def test_the_oldest_checkpoints_are_removed_first(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for name in ("a", "b", "c"):
        store.save(name, _checkpoint(1, 1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert store.load("c", 1) is not None


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in (".t7-lr1.safetensors.4711", ".t7-lr1.5.safetensors.4711"):  # halves of the rates 1 and 1.5
        (tmp_path / name).write_bytes(b"cut off")
    store.save("t7-lr1", _checkpoint(1, 8))
    assert {path.name for path in tmp_path.iterdir()} == {"t7-lr1.safetensors", ".t7-lr1.5.safetensors.4711"}
    store.remove("t7-lr1.5")
    assert {path.name for path in tmp_path.iterdir()} == {"t7-lr1.safetensors"}


def test_a_full_disk_costs_the_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path / "c")
    store.save("x", _checkpoint(1, 8))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.save("x", _checkpoint(2, 8))
    assert "No space left" in caplog.text
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["x.safetensors"]
    kept = store.load("x", 8)
    assert kept.step == 1
