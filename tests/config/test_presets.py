"""Choices that follow from model and device: trainer, sizes, learning rate, text, and the budget of a named card."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qra_bo.cli import app
from qra_bo.config import RunConfig, load_config
from qra_bo.config import presets as presets_module
from qra_bo.config.presets import preset_notes
from qra_bo.memory.cards import CARDS
from qra_bo.pipeline.pricing import make_plan
from qra_bo.utils.device import resolve_dtype


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets_module, "planned_device", lambda device: "cuda" if device[:4] == "cuda" else "cpu")


def sizes(config: RunConfig) -> tuple[object, ...]:
    t = config.train
    return (t.name, t.batch, t.accumulate, t.length, t.optimizer, t.checkpointing, config.fidelity.high,
            config.fidelity.low, config.quantizer.tokens, config.adapter.lr, config.data.calibration)


CPU = ("cpu", 4, 1, 128, "adamw", False, 24, 12, "auto", 2e-3, 8)
GPU = ("gpu", 1, 16, 2048, "adamw_8bit", True, 32, 8, "auto")


@pytest.mark.parametrize("model", ["smollm2_135m", "tiny", "qwen2_5_0_5b_instruct"])
def test_small_models_on_a_cpu_train_at_the_size_of_a_cpu(model: str) -> None:
    found = sizes(load_config([f"+model={model}", "device=cpu", "adapter.lr=2e-3"]))  # which depends on the width
    assert found == CPU


@pytest.mark.parametrize("overrides", [["+model=llama2_7b"], ["+model=llama3_2_1b_instruct", "device=cpu"],
                                       ["+model=tiny", "gpu=l4"], ["+model=tiny", "device=cuda", "task=memory"]])
def test_large_models_and_gpus_train_at_the_size_of_a_gpu(overrides: list[str]) -> None:
    assert sizes(load_config(overrides))[:9] == GPU


def test_what_is_given_wins() -> None:
    config = load_config(["+model=llama2_7b", "gpu=a10", "train=cpu", "budget=9GB", "train.length=64",
                          "adapter.lr=1e-3"])
    assert (config.train.name, str(config.budget[0]), config.train.length) == ("cpu", "9GB", 64)
    assert config.adapter.lr == 1e-3
    config = load_config(["+model=llama2_7b", "train.length=256", "fidelity.low=null", "eval.sequences=8"])
    assert (config.train.name, config.train.length, config.fidelity.low, config.eval.sequences) == ("gpu", 256, None, 8)


@pytest.mark.parametrize(("model", "train", "rate"), [
    ("llama2_7b", "gpu", 2e-4), ("llama2_70b", "gpu", 1e-4), ("qwen2_5_0_5b_instruct", "gpu", 9.1e-4),
    ("qwen2_5_32b_instruct", "gpu", 1.6e-4), ("smollm2_135m", "cpu", 2e-3), ("qwen2_5_0_5b_instruct", "cpu", 1.3e-3),
    ("tiny", "cpu", 2e-3), ("hf", "cpu", 2e-3), ("hf", "gpu", 2e-4)])
def test_learning_rate_falls_with_the_width(model: str, train: str, rate: float) -> None:
    config = load_config([f"+model={model}", "model.path=name", f"train={train}"])
    assert config.adapter.lr == rate


@pytest.mark.parametrize("numbers", [{"hidden_size": 896}, {"text_config": {"hidden_size": 896}}])
def test_learning_rate_falls_with_the_width_in_a_folder(numbers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    assert load_config(["+model=hf", f"model.path={tmp_path}", "train=cpu"]).adapter.lr == 1.3e-3


@pytest.mark.parametrize(("path", "name"), [
    ("org/name-0.5B", "name-0.5B"), ("a/mine/", "mine"), ("f.gguf", "f.gguf"), ("f.GGUF", "f.GGUF"),
    ("org/name model.name=other", "other")])
def test_a_model_of_a_path_has_its_name(path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / path).touch() if path.lower() == "f.gguf" else None
    assert load_config(["+model=hf", *f"model.path={path}".split()]).model_name == name


def test_budget_of_a_named_card_is_its_memory_less_the_headroom() -> None:
    plan = make_plan(load_config(["+model=llama2_7b", "task=memory", "gpu=rtx4090"]))
    assert [(b.text, b.size) for b in plan.budgets] == [("auto", CARDS["rtx4090"].total_bytes - 10**9)]
    assert plan.memory.shape.device == "cuda"
    smaller = make_plan(load_config(["+model=llama2_7b", "task=memory", "gpu=rtx4090", "memory.headroom=2GB"]))
    assert smaller.budgets[0].size == CARDS["rtx4090"].total_bytes - 2 * 10**9
    (given,) = make_plan(load_config(["+model=llama2_7b", "task=memory", "gpu=rtx4090", "budget=10GB"])).budgets
    assert (given.text, given.size) == ("10GB", 10**10)


@pytest.mark.parametrize(("words", "train"), [
    ([], "cpu"), (["task=profile"], "cpu"), (["task=finetune", "allocation=uniform:4,4"], "cpu"),
    (["+model=llama2_7b"], "gpu"), (["train=gpu"], "gpu")])
def test_training_where_torch_lacks_cuda_has_the_size_of_a_cpu(words: list[str], train: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets_module, "planned_device", lambda device: "cuda" if device == "auto" else device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_config(words)
    assert config.train.name == train
    trainer, lacks, *_ = preset_notes(config)
    assert " CUDA device" not in trainer
    assert re.match(r"device=auto: this machine has NVIDIA's driver, but torch \S+ sees no CUDA device: the run "
                    r"trains on the CPU\. .* give device=cpu$", lacks)
    assert not any("driver" in note for note in preset_notes(load_config([*words, "device=cpu"])))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load_config(words)
    assert config.train.name == "gpu"
    assert not any("driver" in note for note in preset_notes(config))


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((7, 0), "float16"), ((8, 0), "bfloat16"),
                                                   ((12, 0), "bfloat16"), (None, "bfloat16")])
def test_automatic_type_avoids_emulated_bfloat16(capability: tuple[int, int] | None, dtype: str) -> None:
    assert resolve_dtype("auto", "cuda", capability) == dtype
    assert resolve_dtype("bfloat16", "cuda", capability) == "bfloat16"


@pytest.mark.parametrize(("described", "dtype"), [
    ("vendor_id\t: GenuineIntel\nflags\t\t: fma avx512f avx512_bf16", "float32"),
    ("vendor_id\t: GenuineIntel\nflags\t\t: fma avx512_bf16 amx_bf16 amx_tile", "bfloat16"),
    ("vendor_id\t: AuthenticAMD\nflags\t\t: fma avx512_bf16", "bfloat16"),
    ("vendor_id\t: AuthenticAMD\nflags\t\t: fma avx2", "float32"),
    ("Features\t: asimd i8mm bf16", "bfloat16"), ("Features\t: asimd", "float32"), (None, "float32")])
def test_automatic_type_of_a_cpu_is_the_faster_one(described: str | None, dtype: str, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.utils.device.CPUINFO", tmp_path / "cpuinfo")
    if described is not None:
        (tmp_path / "cpuinfo").write_text(described)
    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"


def test_every_job_of_a_sweep_gets_its_own_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[RunConfig] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "run_task", lambda config: seen.append(config) or 0)
    assert app.main(["--multirun", "+model=tiny,llama2_7b", "gpu=null,t4"]) == 0
    assert [(c.model_name, c.train.name, str(c.budget[0])) for c in seen] == [
        ("tiny", "cpu", "uniform:4,4"), ("tiny", "gpu", "auto"), ("llama2_7b", "gpu", "uniform:4,4"),
        ("llama2_7b", "gpu", "auto")]


def test_own_profile_keeps_its_budget_and_gets_the_trainer_that_suits(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    site = "# @package _global_\nbudget: 20GB\ntrain:\n  length: 512\n"
    (tmp_path / "profile" / "site.yaml").write_text(site)
    given = ["+model=llama2_7b", "profile=site"]
    for more in (["gpu=rtx4090"], ["task=finetune", "allocation=uniform:4,16"]):
        config = load_config([*given, *more], str(tmp_path))
        assert (str(config.budget[0]), config.train.name, config.train.length) == ("20GB", "gpu", 512)
        assert load_config([*given, *more, "budget=9GB"], str(tmp_path)).budget[0].text == "9GB"
    assert load_config([*given, "train=cpu"], str(tmp_path)).train.name == "cpu"


@pytest.mark.parametrize(("words", "scales"), [
    ([], (0.5, 1.0, 2.0)), (["adapter.lr=0.001"], (1.0,)),
    (["adapter.lr=0.001", "calibrate.lr_scales=[0.7,1.3]"], (0.7, 1.3))])
def test_a_fine_tune_tries_no_rates_beside_one_that_is_given(words: list[str], scales: tuple[float, ...]) -> None:
    given = load_config(["task=finetune", "+model=tiny", "data=tiny", "allocation=uniform:4,2", *words])
    assert given.calibrate.lr_scales == scales
    assert load_config(["+model=tiny", "data=tiny", "adapter.lr=0.001"]).calibrate.lr_scales == (0.5, 1.0, 2.0)
