"""Caches that are damaged, of other weights, or locked by a stopped process: the results are those without a cache."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qra_bo.config import load_config
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec
from tests.damage import DAMAGES, flipped
from tests.finetune.models import tiny_llama

OPTIONS = ["data=tiny", "device=cpu", "train.batch=2", "train.length=32", "eval.sequences=8", "data.max_records=64",
           "data.calibration=4", "quantizer.tokens=256", "bits=[3,4]"]


def results(cache: Path, out: Path, model: list[str]) -> dict[str, Any]:
    """The numbers of one profile and one trial, and the hash of the weights."""
    os.environ["QRA_BO_CACHE"] = str(cache)
    oracle = make_oracle(load_config([*model, *OPTIONS]).to_dict(), str(out))
    try:
        profile, n = oracle.profile(lambda *_: None), len(oracle.units)
        loss = oracle.evaluate(TrialSpec(Allocation(("hqq3",) * n, (2,) * n), 2, 2, 1, 2e-3), lambda *_: None).loss
        return {"profile": profile, "loss": loss, "weights": oracle.describe()["model_sha256"],
                "cost": dict(oracle.profile_cost)}
    finally:
        oracle.close()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    fields = ("quantization_sensitivity", "quantization_kl", "rank_sensitivity")
    return one["loss"] == other["loss"] and one["cost"] == other["cost"] and all(
        np.array_equal(getattr(one["profile"], f), getattr(other["profile"], f)) for f in fields)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRA_BO_CACHE", "")
        return folder / "cache", results(folder / "cache", folder / "out", ["+model=tiny"])


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_caches_are_made_anew(kind: str, filled: tuple[Path, dict[str, Any]], tmp_path: Path,
                                      caplog: pytest.LogCaptureFixture) -> None:
    cache, expected = filled
    shutil.copytree(cache, tmp_path / "cache")
    files = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert {path.relative_to(tmp_path / "cache").parts[0] for path in files} == {"codes", "profiles"}
    DAMAGES[kind](files, random.Random(kind))
    assert same(results(tmp_path / "cache", tmp_path / "out", ["+model=tiny"]), expected)
    assert "anew" in caplog.text
    for path in (path for path in files if path.suffix == ".safetensors" and path.is_file()):
        assert load_file(path)


def test_no_change_of_a_cached_file_is_read_as_a_result(tmp_path: Path) -> None:
    rng = random.Random(0)
    store, tensors = TensorStore(tmp_path, {}), {"hqq3:codes": torch.arange(40), "hqq3:scale": torch.randn(9)}
    store.save("q_proj", tensors)
    path = store.folder / "q_proj.safetensors"
    whole = path.read_bytes()
    changes = [whole[:at] + flipped(whole[at:at + 1], rng) + whole[at + 1:] for at in range(len(whole))]
    for content in (*changes, *(whole[:at] for at in range(len(whole))), whole + b"\0"):
        path.write_bytes(content)
        found = store.load("q_proj")
        assert found is None or all(torch.equal(found[name], tensors[name]) for name in tensors)
    path.write_bytes(whole)
    assert store.load("q_proj") is not None


def other_weights(folder: Path) -> None:
    """Change all but the first bytes of the same file, whose time stays."""
    weights = load_file(folder / "model.safetensors")
    for tensor in weights.values():
        tensor.flatten()[4096:].mul_(-1.5)
    status = (folder / "model.safetensors").stat()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))


def other_positions(folder: Path) -> None:
    """Turn positions faster, as a RoPE scaling that is written into a configuration by hand does."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 10.0
    (folder / "config.json").write_text(json.dumps(config))


def other_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["q"] = vocabulary["q"], vocabulary["e"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("change", [other_weights, other_positions, other_tokens])
def test_a_model_that_was_changed_in_its_folder_shares_no_cache(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_llama(vocab=512)[0].save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    options = ["+model=hf", f"model.path={folder}"]
    before = results(tmp_path / "shared", tmp_path / "a", options)
    change(folder)
    after = results(tmp_path / "shared", tmp_path / "b", options)
    assert (after["weights"] == before["weights"]) is (change is not other_weights)
    expected = results(tmp_path / "fresh", tmp_path / "c", options)
    assert not same(before, expected)
    assert same(after, expected)


HOLDER = """
import os, pathlib, signal, sys
from qra_bo.finetune.cache import TensorStore
with TensorStore(pathlib.Path(sys.argv[1]), {"a": 1}).alone(lambda: None):
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system has no SIGSTOP")
def test_a_stopped_holder_of_the_lock_delays_others_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("qra_bo.finetune.cache.PATIENCE_SECONDS", 1.0, raising=False)
    caplog.set_level(logging.WARNING)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)])
    waits: list[None] = []

    def waiting() -> None:
        waits.append(None)
        assert len(waits) < 20, "it waits without end"

    try:
        assert os.WIFSTOPPED(os.waitpid(holder.pid, os.WUNTRACED)[1])
        with TensorStore(tmp_path, {"a": 1}).alone(waiting):
            assert waits
    finally:
        holder.kill()
        holder.wait()
    assert f"process {holder.pid} on" in caplog.text
    assert "made here too" in caplog.text
