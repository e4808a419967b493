"""Runs on the codes of a GGUF file: from the plan to the adapter in llama.cpp, beside the untouched file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import qra_bo
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.export.registry import check_exports
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.quantization.stored import StoredLinear
from qra_bo.memory.file_formats import TYPES
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.run import run
from qra_bo.utils.errors import ConfigError, ModelError, SpaceError
from tests.finetune.stored_files import MIXED, write_file

SMALL = ("codes=stored", "data=tiny", "device=cpu", "dtype=float32", "train.batch=2", "train.length=32",
         "eval.sequences=4", "data.max_records=64", "data.calibration=4", "ranks=[1,2,4]", "display=none",
         "effort=instant", "final.steps=8", "adapter.lr=0.02")


def overrides(file: Path, *more: str) -> list[str]:
    return ["+model=hf", f"model.path={file}", *SMALL, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stored")
    file = write_file(folder / "m.gguf", tables=("Q8_0", "Q6_K"))
    config = load_config(overrides(file, f"out={folder / 'run'}", "export.targets=[gguf,merged]",
                                   "export.gguf=[base,adapter,merged-q8_0,base-f32]"))
    best = run(config).best
    return folder, dict(best)


def test_best_json_gives_types_bits_and_bytes(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, best = finished
    stored, spec = best["stored"], make_spec(load_config(overrides(folder / "m.gguf")))
    assert set(stored["types"].values()) == set(MIXED.values())
    assert stored["tables"] == ["Q8_0", "Q6_K"]
    weighted = sum(TYPES[m.stored].bits * m.numel for m in spec.linears) / spec.linear_numel
    assert math.isclose(best["average_bits"], weighted)
    assert best["codes"] == "stored"
    assert sum(stored["unit_bytes"]) == sum(m.numel // TYPES[m.stored].weights * TYPES[m.stored].size
                                            for m in spec.linears)
    assert best["memory"]["measured_bytes"] == pytest.approx(best["memory"]["predicted_bytes"], rel=0.03)


def test_results_load_with_the_blocks_of_the_file(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    model, _ = qra_bo.load(folder / "run")
    assert sum(isinstance(m, StoredLinear) for m in model.modules()) == 14
    assert not (folder / "run" / "packed.safetensors").exists()
    assert not (folder / "run" / "gguf" / "base.gguf").exists()


def test_llamacpp_computes_the_adapter_beside_the_file(finished: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip("llama_cpp_py_sync")
    folder, _ = finished
    rows = {row.what: row for row in check_exports(FinishedRun.read(folder / "run"))}
    assert rows["manifest and adapter"].largest == 0
    for what in ("gguf, base-f32", "gguf, base-f32 with the adapter"):
        assert rows[what].largest is not None and rows[what].largest <= 1e-3  # noqa: PT018
    for what in ("gguf, base with the adapter", "gguf, merged-q8_0", "merged"):
        assert rows[what].kl is not None and rows[what].kl <= 0.01  # noqa: PT018


def test_another_file_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    file = folder / "m.gguf"
    kept = file.read_bytes()
    try:
        data = bytearray(kept)
        data[-3] ^= 1  # a code of the head
        file.write_bytes(data)
        with pytest.raises(ModelError, match="lm_head"):
            qra_bo.load(folder / "run")
        write_file(file, types={**MIXED, "ffn_up": "Q4_0"}, tables=("Q8_0", "Q6_K"))
        with pytest.raises(ModelError, match="up_proj"):
            qra_bo.load(folder / "run")
    finally:
        file.write_bytes(kept)


def test_plan_reads_the_header_alone(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf")
    plan = make_plan(load_config(overrides(file, "task=memory", "budget=uniform:4,2")))
    answer = plan.budgets[0]
    assert set(answer.ranks) == {"stored4"}
    assert answer.ranks["stored4"] >= 2
    assert json.loads(json.dumps(plan.to_json()))["stored"]["tables"] == ["Q8_0"]
    with pytest.raises(SpaceError, match="uniform:4,2"):
        make_plan(load_config(overrides(file, "task=memory", "budget=mix:3.5,2")))


def test_ranks_are_searched_within_the_budget(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf")
    config = load_config(overrides(file, "effort=quick", "oracle=synthetic", "budget=uniform:4,2", "granularity=fused",
                                   f"out={tmp_path / 'run'}"))
    best = run(config).best
    assert len(best["ranks"]) == make_space(config, make_spec(config)).n_units == 8
    assert best["memory"]["predicted_bytes"] <= best["memory"]["budget_bytes"]


@pytest.mark.parametrize(("given", "key"), [
    ("bits=[4]", "bits"), ("quantizer.rounding=rtn", "quantizer.rounding"), ("quantizer.rounding=gptq",
                                                                            "quantizer.rounding"),
    ("embeddings=8", "embeddings"), ("serve=vllm", "serve"), ("max_average_bits=4", "max_average_bits"),
    ("export.targets=[mlx]", "export.targets")])
def test_keys_that_need_other_codes_are_refused(given: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["codes=stored", "effort=instant", given])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(key)


def test_types_of_files_are_no_formats_of_a_search() -> None:
    with pytest.raises(ConfigError, match="Q4_K"):
        load_config(["quantizer.formats.4=[Q4_K]"])
    with pytest.raises(ConfigError, match="gguf_file"):
        load_config(["+model=tiny", "codes=stored"])
