"""No pickle is read from model folders and exports of unknown origin."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qra_bo.export.comparison import Reference, plain_model
from qra_bo.export.vllm import write_adapter
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.load import load_base
from qra_bo.utils.errors import ModelError, OutputError
from tests.finetune.test_manifest import MODEL
from tests.security.test_adapters import TANGLED, edit, finished
from tests.security.test_hostile import HF


@pytest.fixture(name="folder")
def make_model(tmp_path: Path) -> Path:
    """A model's folder that loads."""
    model, _ = load_base(MODEL)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def hostile(*args: object, **kwargs: object) -> None:
    raise AssertionError("a pickle was read")


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    monkeypatch.setattr(torch, "load", hostile)
    with pytest.raises(ModelError, match=message):
        load_base({**HF, "path": str(folder)})


@pytest.mark.parametrize("shard", ["x.bin", "../x.safetensors", "/etc/x.safetensors", 3])
def test_an_index_names_safetensors_in_the_folder_alone(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                        shard: object) -> None:
    (folder / "model.safetensors").rename(folder / "dummy.safetensors")
    torch.save({}, folder / "x.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    refused(folder, monkeypatch, r"index\.json of .*must be a \*\.safetensors beside it")


@pytest.mark.parametrize("changes", [{"transformers_weights": "adapter_model.bin"},
                                     {"text_config": {"transformers_weights": "adapter_model.bin"}},
                                     {"configuration_files": ["config.1.0.0.json"]}])
def test_a_configuration_redirects_to_no_other_file(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                    changes: dict[str, Any]) -> None:
    torch.save({}, folder / "adapter_model.bin")
    edit(folder / "config.json", **changes)
    refused(folder, monkeypatch, "redirects the reading")


def test_a_base_brings_no_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "base_model_name_or_path": "evil/base", "target_modules": TANGLED}))
    refused(folder, monkeypatch, r"holds adapter_config\.json")


def test_an_export_that_is_a_pickle_is_never_read(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run / "export" / "vllm"
    target.mkdir(parents=True)
    write_adapter(finished(run), target)
    (target / "adapter_model.safetensors").unlink()
    torch.save({}, target / "adapter_model.bin")
    reference = object.__new__(Reference)
    reference.run = finished(run)
    monkeypatch.setattr(torch, "load", hostile)
    with pytest.raises(OutputError, match="a pickle, which can run code"):
        reference.adapted(target, one_rank=True)
    torch.serialization.save({}, folder / "adapter_model.bin")
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ModelError, match="redirects the reading"):
        plain_model(folder, False)
