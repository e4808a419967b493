"""Runs on the codes of two EXL3 folders of one model: each unit has those of one, and the export holds them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import qra_bo
from qra_bo.config import load_config, make_spec
from qra_bo.export.registry import check_exports, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.models.hub import is_on_hub
from qra_bo.finetune.models.load import located
from qra_bo.finetune.quantization.stored_model import load_others, load_stored
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.run import run
from qra_bo.utils.errors import ConfigError
from tests.executors import work_in_this_process
from tests.finetune.test_exl3 import write_exl3
from tests.finetune.test_packed_folders import logits, node
from tests.hub_server import serving
from tests.pipeline.test_stored_run import (
    SMALL,
    assert_a_profile_chooses_a_mix,
    assert_codes_on_the_host_are_built,
)

WIDE = {**dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"), "mul1-3"),
        "down_proj": "3inst-3", "lm_head": "mul1-6"}
NARROW = {**dict.fromkeys(WIDE, "mul1-2"), "v_proj": "mul1-2.5", "down_proj": "mcg-2"}
MIX = ["other2", "stored3"]  # of the two layers, the first with the codes of the second folder


def overrides(folder: Path, *more: str) -> list[str]:
    return ["+model=hf", f"model.path=[{folder / 'wide'},{folder / 'narrow'}]", *SMALL, *more]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exl3")
    write_exl3(folder / "wide", kinds=WIDE)
    write_exl3(folder / "narrow", kinds=NARROW)
    (folder / "wide" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_mix_is_trained_saved_loaded_and_exported_unchanged(folders: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    work_in_this_process(monkeypatch)
    (tmp_path / "mix.json").write_text(json.dumps({"formats": MIX, "ranks": [2, 4]}))
    best = run(load_config(overrides(folders, f"out={tmp_path / 'run'}", "task=finetune", "budget=1GB",
                                     f"allocation={tmp_path / 'mix.json'}", "serve=exllamav3"))).best
    finished = FinishedRun.read(tmp_path / "run")
    export_all(finished, ["merged"])
    assert "needs its mixed base" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    with pytest.raises(ConfigError, match="exl3-mul1-2"):
        export_all(finished, ["gguf"])
    rows = {row.what: row for row in check_exports(finished)}
    assert rows["merged"].kl <= 0.001
    assert {rows[what].largest for what in ("manifest and adapter", "exl3, base", "exl3, with the adapter")} == {0}
    read = load_stored(node(tmp_path / "run" / "exl3"), torch.float32)[0]
    assert torch.equal(logits(qra_bo.load(tmp_path / "run", adapter=False)[0]), logits(read.float()))
    wide, narrow, mixed = (tensors(at) for at in (folders / "wide", folders / "narrow", tmp_path / "run" / "exl3"))
    first = {name: tensor for name, tensor in narrow.items() if name.startswith("model.layers.0.")}
    expected = {name: tensor for name, tensor in wide.items() if not name.startswith("model.layers.0.")} | first
    assert {name: (t.dtype, t.tolist()) for name, t in mixed.items()} == {
        name: (t.dtype, t.tolist()) for name, t in expected.items()}
    facts = json.loads((tmp_path / "run" / "exl3" / "quantization_config.json").read_text())
    storage = facts["tensor_storage"]
    assert [storage[f"model.layers.{i}.self_attn.v_proj"]["bits_per_weight"] for i in range(2)] == [2.5, 3]
    assert (facts["version"], facts["head_bits"]) == ("1.6", 6)
    assert json.loads((tmp_path / "run" / "exl3" / "generation_config.json").read_text())["eos_token_id"] \
            == [7, 9, 256]  # the tokenizer's own too
    parts = best["memory"]["breakdown"]
    assert parts["weights"] + parts["quant_metadata"] == sum(
        t.nbytes for name, t in mixed.items() if ".layers." in name and t.ndim and "norm" not in name
        and not name.endswith(".bias"))


@pytest.mark.slow
def test_a_mix_is_chosen_by_a_profile_of_the_second_folder(folders: Path, tmp_path: Path) -> None:
    assert_a_profile_chooses_a_mix(overrides(folders), tmp_path / "run", "mix:2.5,2")


def test_codes_of_two_folders_on_the_host_are_built_where_they_run(folders: Path) -> None:
    assert_codes_on_the_host_are_built(load_config(overrides(folders)), MIX[0])


def test_plan_names_both_folders_and_the_program(folders: Path) -> None:
    config = load_config(overrides(folders, "task=memory", "serve=exllamav3"))
    plan = make_plan(config)
    assert not is_on_hub(config.model)
    assert "exl3-mul1-3 in 12 linears" in plan.serving
    assert "exl3/" in plan.serving
    facts = json.loads(json.dumps(plan.to_json()))["stored"]
    assert {*facts["files"]} == {*MIX}


def with_norm(folder: Path) -> None:
    found = tensors(folder)
    found["model.norm.weight"] = found["model.norm.weight"].flip(0).contiguous()
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def with_config(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
        (folder / "config.json").write_text(json.dumps(config))
    return change


def with_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")


@pytest.mark.parametrize(("change", "named"), [
    (with_norm, "model.norm.weight"), (with_config("rms_norm_eps", 1e-3), "rms_norm_eps"),
    (with_tokens, "tokenizer.json"), (with_config("quantization_config", {"quant_method": "gptq"}), "quant_method")])
def test_folders_of_different_models_are_refused(folders: Path, tmp_path: Path, change: Callable[[Path], None],
                                                 named: str) -> None:
    write_exl3(tmp_path / "wide", kinds=WIDE)
    write_exl3(tmp_path / "narrow", kinds=NARROW)
    change(tmp_path / "narrow")
    with pytest.raises(ConfigError) as caught:
        load_config(overrides(tmp_path))
    assert len(caught.value.problems) == 1
    assert named in caught.value.problems[0]


@pytest.mark.parametrize(("more", "named"), [
    (("codes=chosen",), "model.path"), (("serve=llamacpp",), "serve=exllamav3"),
    (("export.targets=[mlx]",), "export.targets")])
def test_keys_that_two_folders_do_not_take_are_refused(folders: Path, more: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(overrides(folders, *more))


def test_order_and_kinds_of_lists(folders: Path) -> None:
    with pytest.raises(ConfigError, match="most code bits"):
        load_config(["+model=hf", f"model.path=[{folders / 'narrow'},{folders / 'wide'}]", *SMALL])
    with pytest.raises(ConfigError, match="or of folders"):
        load_config(["+model=hf", f"model.path=[{folders / 'wide'},{folders / 'm.gguf'}]", *SMALL])
    config = load_config(["+model=hf", f"model.path=[{folders / 'wide'}]", *SMALL])
    assert [name for name, _ in make_spec(config).linears[0].stored] == ["stored3"]


@pytest.mark.parametrize("lists", [("model.path=[org/wide,org/narrow]",),
                                   ("model.path=org/wide", "model.revision=[main,2.0bpw]")])
def test_repositories_and_branches_are_lists_too(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 lists: tuple[str, ...]) -> None:
    repos = {"org/wide": folders / "wide", "org/narrow": folders / "narrow", "org/wide@2.0bpw": folders / "narrow"}
    with serving(repos) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        config = load_config(["+model=hf", *lists, *SMALL])
        assert make_spec(config) == replace(make_spec(load_config(overrides(folders))), name="wide")
        (narrow,) = load_others(config.model, torch.float32)
        expected = load_stored(node(folders / "narrow"), torch.float32)[0]
    assert torch.equal(logits(narrow.float()), logits(expected.float()))
    there = located(config.model, "0123")  # the commit of the first repository, which another one lacks
    assert there["path"] in (["org/wide", "org/narrow"], "org/wide")
    assert there["revision"] == config.model["revision"]
