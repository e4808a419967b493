"""A real search with a packed embedding: the same at every time, continued where it was cut off, loaded as trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import qra_bo
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.export.load import load
from qra_bo.finetune.manifest import PROBE, probe_difference
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.finetune.quantization.embeddings import packed_tables
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.pipeline.given import read_allocation
from qra_bo.utils.errors import UserError
from tests.executors import work_in_this_process
from tests.study.problem import comparable

SEARCH = ["+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "eval.sequences=4",
          "fidelity.high=2", "fidelity.low=1", "final.steps=3", "device=cpu", "dtype=bfloat16", "display=none",
          "quantizer.rounding=rtn", "adapter.lr=0.003", "method=random", "effort=quick",
          "effort.max_full_trials=1", "effort.uniform_baselines=1", "confirm.seeds=0", 
          "calibrate.lr_scales=[1.0]", "bits=[4,8]", "budget=uniform:4,4", "embeddings=8"]


@pytest.fixture(scope="module", autouse=True)
def in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Let the real oracle work in this process, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        patch.setenv("QRA_BO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("searched") / "run"
    return folder, qra_bo.search(SEARCH, out=str(folder)).best


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_that_was_cut_off_ends_the_same(run: tuple[Path, Mapping[str, Any]], tmp_path: Path) -> None:
    folder, best = run
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.jsonl").write_bytes(b"".join(lines[:len(lines) // 2]))
    resumed = qra_bo.search(SEARCH, out=str(tmp_path / "cut")).best
    assert comparable(resumed) == comparable(best)
    assert adapter(tmp_path / "cut") == adapter(folder)
    with pytest.raises(UserError, match="embeddings was 8"):
        qra_bo.search([*SEARCH, "embeddings=16"], out=str(tmp_path / "cut"))


def test_best_json_and_the_peak_know_the_embedding(run: tuple[Path, Mapping[str, Any]]) -> None:
    memory = run[1]["memory"]
    assert run[1]["embeddings"] == 8
    assert memory["breakdown"]["embeddings"] == 512 * 64 + 2 * 512
    assert memory["measured_bytes"] <= 1.005 * memory["predicted_bytes"]
    assert memory["predicted_bytes"] <= 1.05 * memory["measured_bytes"]
    kept = ("weights", "quant_metadata", "adapters", "embeddings", "unquantised")
    # In bf16 unquantised weights and adapters take as much in memory as in a file.
    assert memory["file_bytes"] == sum(memory["breakdown"][key] for key in kept)


def test_the_run_loads_with_the_logits_of_its_end(run: tuple[Path, Mapping[str, Any]]) -> None:
    assert list(packed_tables(load(run[0], adapter=False)[0])) == ["model.embed_tokens"]
    for dense in (False, True):
        model, _ = load(run[0], dense=dense)
        assert probe_difference(model, run[0] / PROBE, torch.device("cpu")) == 0
        packed = [m for m in model.modules() if isinstance(m, PackedLinear | PackedTable)]
        assert {m.dense is not None for m in packed} == {dense}


def test_a_run_keeps_the_embedding_that_its_budget_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [word for word in SEARCH if not word.startswith(("embeddings", "budget", "bits"))]
    words = [*chosen, "oracle=synthetic", "bits=[2,3,4]", "budget=1410KB", f"out={tmp_path / 'run'}"]
    best = qra_bo.search(words).best
    assert best["embeddings"] == 8
    assert best["memory"]["predicted_bytes"] <= 1_410_000
    lines = (tmp_path / "run" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["config"]["embeddings"] == 8
    (tmp_path / "run" / "trials.jsonl").write_bytes(b"".join(lines[:len(lines) // 2]))
    monkeypatch.setattr("qra_bo.pipeline.prepare.with_embeddings", None)  # chosen once
    assert comparable(qra_bo.search(words).best) == comparable(best)


def test_an_allocation_is_trained_with_the_embedding_that_it_was_found_with(
        run: tuple[Path, Mapping[str, Any]]) -> None:
    words = [word for word in SEARCH if not word.startswith(("embeddings", "budget"))]
    config = load_config([*words, "task=finetune", f"allocation={run[0]}", "budget=allocation"])
    given, read = read_allocation(config, make_space(config, make_spec(config)))
    assert read.embeddings == 8
    assert not any("embeddings" in note for note in given.notes)
