"""Results kept on disk between runs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qra_bo.finetune import cache
from qra_bo.finetune.cache import TensorStore

MEGABYTE = {"codes": torch.zeros(1 << 20, dtype=torch.uint8)}


def aged_stores(folder: Path, count: int) -> list[TensorStore]:
    """Stores of a megabyte each, the first used longest ago."""
    stores = [TensorStore(folder / "codes", {"n": n}) for n in range(count)]
    for n, store in enumerate(stores):
        store.save("q_proj", MEGABYTE)
        os.utime(store.folder, (n, n))
    return stores


def test_the_least_recently_used_keys_of_all_kinds_go_beyond_the_limit(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST", 2.5 * (1 << 20))
    stores = [TensorStore(tmp_path / kind, {"n": n}) for n, kind in enumerate(("codes", "profiles", "bank", "codes"))]
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


def test_a_key_that_another_process_removed_is_kept_for_the_run_again(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "codes", {}, tmp_path / "run")
    store.save("q_proj", MEGABYTE)
    shutil.rmtree(store.folder)
    store.save("k_proj", MEGABYTE)
    assert [path.read_text() for path in store.folder.glob("*.run")] == [str(tmp_path / "run")]


def test_keys_and_files_that_go_meanwhile_stop_no_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = aged_stores(tmp_path, 4)
    list_files = Path.iterdir

    def as_another_process_removes(folder: Path) -> Iterator[Path]:
        yield from [*list_files(folder), folder / "gone"]
        if folder == stores[0].folder:
            shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(Path, "iterdir", as_another_process_removes)
    monkeypatch.setattr(cache, "LARGEST", 2.5 * (1 << 20))
    cache.make_room(tmp_path, stores[3].folder)
    assert [store.folder.exists() for store in stores] == [False, False, True, True]


def test_bytes_that_could_not_be_removed_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = aged_stores(tmp_path, 3)
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: path == stores[0].folder or remove(path))
    monkeypatch.setattr(cache, "LARGEST", 2.5 * (1 << 20))
    cache.make_room(tmp_path, stores[2].folder)
    assert [store.folder.exists() for store in stores] == [True, False, True]


def test_what_a_killed_writer_left_goes_after_an_hour(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "codes", {})
    store.save("layers.0.q_proj", MEGABYTE)
    left = [store.folder / f".layers.0.k_proj.safetensors.{pid}" for pid in (1, 2)]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    cache.make_room(tmp_path, store.folder)
    assert [path.exists() for path in left] == [False, True]
    assert store.load("layers.0.q_proj") is not None
