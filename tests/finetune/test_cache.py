"""Results kept on disk between runs."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qra_bo.finetune import cache
from qra_bo.finetune.adapters.lowrank import Factors, leading
from qra_bo.finetune.cache import TensorStore

MEGABYTE = {"codes": torch.zeros(1 << 20, dtype=torch.uint8)}


def test_tensors_are_kept_on_disk(tmp_path: Path) -> None:
    factors = leading(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), 3)
    store = TensorStore(tmp_path, {"weights": "a"})
    assert store.load("layer.nf4") is None
    store.save("layer.nf4", {"down": factors.down, "up": factors.up})
    again = TensorStore(tmp_path, {"weights": "a"}).load("layer.nf4")
    assert again is not None
    assert torch.equal(Factors(**again).product(), factors.product())
    assert TensorStore(tmp_path, {"weights": "b"}).load("layer.nf4") is None


def test_the_least_recently_used_keys_of_all_kinds_go_beyond_the_limit(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST", 2.5 * (1 << 20))
    stores = [TensorStore(tmp_path / kind, {"n": n}) for n, kind in enumerate(("codes", "factors", "bank", "codes"))]
    for n, store in enumerate(stores[:2]):
        store.save("q_proj", MEGABYTE)
        os.utime(store.folder, (n, n))
    assert TensorStore(tmp_path / "codes", {"n": 0}).load("q_proj")  # used again
    with stores[2].alone(lambda: None):
        stores[2].save("q_proj", MEGABYTE)
    assert [store.folder.exists() for store in stores[:3]] == [True, False, True]
    monkeypatch.setattr(cache, "LARGEST", 0)
    stores[3].save("q_proj", MEGABYTE)
    assert [store.folder.exists() for store in stores] == [False, False, False, True]


def test_a_tenth_of_the_free_disk_is_a_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, n=n: SimpleNamespace(free=(15 - n) << 20))
        with TensorStore(tmp_path / "codes", {"n": n}).alone(lambda: None):
            TensorStore(tmp_path / "codes", {"n": n}).save("q_proj", MEGABYTE)
    assert len(list((tmp_path / "codes").iterdir())) == 1


@pytest.mark.parametrize(("state", "days", "kept"), [
    ("interrupted", 0, True), ("running", 29, True), ("failed", 31, False), ("done", 0, False), (None, 0, False)])
def test_five_other_runs_do_not_evict_the_codes_of_a_stopped_one(
        state: str | None, days: float, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST", 3 << 20, raising=False)
    runs = [tmp_path / f"run-{n}" for n in range(6)]
    for n, run in enumerate(runs):
        run.mkdir()
        store = TensorStore(tmp_path / "codes", {"n": n}, run)
        for name in ("q_proj", "k_proj"):
            store.save(name, MEGABYTE)
        if n or state is not None:
            (run / "status.json").write_text(json.dumps({"state": "done" if n else state}))
        if n == 0:
            now = os.path.getmtime(store.folder)
            for path in (*store.folder.glob("*.run"), store.folder):
                os.utime(path, (now - 86400 * days,) * 2)
    assert (TensorStore(tmp_path / "codes", {"n": 0}).load("q_proj") is not None) is kept
    assert TensorStore(tmp_path / "codes", {"n": 1}).load("q_proj") is None


def test_a_change_of_source_files_keeps_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> Path:
        for value in vars(cache).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
        return TensorStore(tmp_path, {}).folder

    before, read = folder(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.suffix == ".py"))
    assert folder() == before
