"""Runs on the codes of folders that other quantisers packed: trained, saved, loaded again, exported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import qra_bo
from qra_bo.config import load_config
from qra_bo.export.registry import check_exports, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.run import run
from qra_bo.utils.errors import ConfigError, ModelError
from tests.executors import work_in_this_process
from tests.finetune.packed_folders import awq, compressed, gptq, random_llama, write, write_nf4
from tests.pipeline.test_stored_run import overrides

FOLDERS: dict[str, Callable[[Path], Any]] = {
    "gidx4-g32": lambda path: write(path, *gptq(4, 32, sym=False, desc_act=True)), "nf4": write_nf4,
    "int4-g64": lambda path: write(path, *awq()), "sym3-g32": lambda path: write(path, *compressed(3, 32))}


@pytest.fixture(scope="module", params=["gidx4-g32", *(pytest.param(name, marks=pytest.mark.slow)
                                                      for name in ("nf4", "int4-g64", "sym3-g32"))])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp("packed")
    FOLDERS[request.param](folder / "m")
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        return request.param, folder, run(load_config(overrides(folder / "m", f"out={folder / 'run'}"))).best


def test_results_load_with_the_codes_of_the_folder(finished: tuple[str, Path, Any]) -> None:
    name, folder, best = finished
    model, _ = qra_bo.load(folder / "run")
    kinds = {module.fmt.name for module in model.modules() if isinstance(module, PackedLinear)}
    (file,) = best["stored"]["files"].values()
    assert kinds == set(file["types"].values()) == {name, *(["fp16"] if name == "sym3-g32" else [])}
    assert best["codes"] == "stored"
    assert not (folder / "run" / "packed.safetensors").exists()
    assert best["memory"]["measured_bytes"] == pytest.approx(best["memory"]["predicted_bytes"], rel=0.03)


def test_exports_are_of_the_run(finished: tuple[str, Path, Any]) -> None:
    _, folder, _ = finished
    export_all(FinishedRun.read(folder / "run"), ["merged", "vllm"])
    rows = {row.what: row for row in check_exports(FinishedRun.read(folder / "run"))}
    assert rows["manifest and adapter"].largest == 0
    assert rows["merged"].kl is not None and rows["merged"].kl <= 0.01  # noqa: PT018
    assert str(folder / "m") in (folder / "run" / "export" / "vllm" / "serve.txt").read_text()
    AutoModelForCausalLM.from_pretrained(folder / "run" / "export" / "merged")
    with pytest.raises(ConfigError, match="mlx"):
        export_all(FinishedRun.read(folder / "run"), ["mlx"])


def test_another_folder_is_refused(finished: tuple[str, Path, Any]) -> None:
    name, folder, _ = finished
    file = folder / "m" / "model.safetensors"
    kept, tensors = file.read_bytes(), load_file(file)
    base = json.loads((folder / "run" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base) == folder / "m"
    leaf = {"nf4": "weight.absmax", "sym3-g32": "weight_scale"}.get(name, "scales")
    changed = tensors[f"model.layers.1.mlp.up_proj.{leaf}"].clone()
    changed.view(-1)[3:5] = changed.view(-1)[3:5].flip(0) + 1
    try:
        save_file({**tensors, f"model.layers.1.mlp.up_proj.{leaf}": changed}, file, {"format": "pt"})
        with pytest.raises(ModelError, match="up_proj"):
            qra_bo.load(folder / "run")
    finally:
        file.write_bytes(kept)


def test_plan_reads_headers_alone(tmp_path: Path) -> None:
    write(tmp_path / "m", *gptq(4, 128))
    plan = make_plan(load_config(overrides(tmp_path / "m", "task=memory", "budget=uniform:4,2")))
    assert set(plan.budgets[0].ranks) == {"stored4"}
    assert set(plan.to_json()["stored"]["files"]["stored4"]["types"].values()) == {"sym4-g128"}


def test_folders_and_codes_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(ConfigError, match="quant_method"):
        load_config(overrides(tmp_path / "dense"))
    write(tmp_path / "m", *gptq())
    for given in ("serve=llamacpp", "export.targets=[gguf]"):  # which take the codes of a GGUF file
        with pytest.raises(ConfigError, match=rf"^{given.partition('=')[0]} beside codes=stored"):
            load_config(overrides(tmp_path / "m", given))
    with pytest.raises(ModelError, match="codes=stored"):
        make_plan(load_config(["+model=hf", f"model.path={tmp_path / 'm'}", "task=memory"]))
