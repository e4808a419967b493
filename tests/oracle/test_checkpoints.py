from pathlib import Path

import torch

from qra_bo.oracle.checkpoints import Checkpoint, CheckpointStore


def _checkpoint(step: int, target: int) -> Checkpoint:
    return Checkpoint(step, target, 2, 100, 30, ((2, 4.5), (3, 4.25)), {"a|master": torch.arange(3.0)})


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new")
    store.save("x", _checkpoint(4, 8))
    loaded = store.load("x", 8)
    assert loaded is not None
    assert torch.equal(loaded.state["a|master"], torch.arange(3.0))
    assert (loaded.step, loaded.target, loaded.first) == (4, 8, 2)
    assert (loaded.training_tokens, loaded.forward_tokens) == (100, 30)
    assert loaded.curve == ((2, 4.5), (3, 4.25))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_one_made_for_more_steps_is_not_used(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save("x", _checkpoint(4, 8))
    assert store.load("x", 7) is None
    assert store.load("y", 8) is None


def test_an_unreadable_one_is_none_and_goes(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"cut off")
    store = CheckpointStore(tmp_path)
    assert store.load("x", 8) is None
    assert not list(tmp_path.iterdir())


def test_the_oldest_go_first(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for name in ("a", "b", "c"):
        store.save(name, _checkpoint(1, 1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert store.load("c", 1) is not None
