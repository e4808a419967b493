"""Downloads from a hub on the loopback interface: first, again, refused, missing, offline, a full disk."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors import safe_open
from transformers import Qwen2Config, Qwen2ForCausalLM

from qra_bo.config import load_config, make_spec
from qra_bo.export.load import dense_base
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.hub import cached, fetch
from qra_bo.finetune.models.load import load_base, source_folder
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.pipeline.executors import make_executor
from qra_bo.utils.errors import ModelError
from tests.finetune.models import tiny_llama
from tests.finetune.stored_files import write_file
from tests.hub_server import COMMIT, Hub, serving

NODE: dict[str, Any] = {"name": "hf", "source": "path", "path": "org/tiny", "revision": None, "gguf_file": None,
                        "trust_remote_code": False}
SHARDS = 3


@pytest.fixture(scope="module", name="repo")
def make_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in shards, with files that no run should ask for."""
    folder = tmp_path_factory.mktemp("repo")
    model, _ = tiny_llama(dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="70KB")
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) == SHARDS
    for other in ("pytorch_model.bin", "consolidated.safetensors", "modeling.py", "onnx/model.safetensors"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"not wanted")
    return folder


@pytest.fixture(name="hub")
def make_hub(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(repo / name, empty)
    with serving({"org/tiny": repo, "org/gated": repo, "org/pickles": empty}) as hub:
        hub.gated.add("org/gated")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None, time=lambda: 0.0))
        yield hub


def test_a_first_download_asks_for_safetensors_and_text_alone(hub: Hub, repo: Path) -> None:
    fetch(NODE, bars=False)
    wanted = {*(f"model-0000{i}-of-0000{SHARDS}.safetensors" for i in range(1, SHARDS + 1)), "config.json",
              "model.safetensors.index.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.fetched()) == wanted
    assert cached(NODE).name == COMMIT


def test_a_worker_reads_the_cache_and_asks_nothing(hub: Hub, repo: Path) -> None:
    fetch(NODE, bars=False)
    hub.requests.clear()
    model, tokenizer = load_base(NODE)
    assert hub.requests == []
    assert (model.config._commit_hash, model.name_or_path, model.config.name_or_path) == (COMMIT, *2 * ("org/tiny",))
    assert tokenizer("one")["input_ids"] == list(b"one")
    expected, _ = tiny_llama(dtype=torch.bfloat16)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    fetch(NODE, bars=False)  # what is there is not fetched again
    assert hub.fetched() == []


def test_a_stored_base_is_pinned_and_named_like_a_dense_one(hub: Hub, repo: Path, tmp_path: Path,
                                                            caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(write_file(tmp_path / "m.gguf"), repo)
    model, _ = load_stored({**NODE, "gguf_file": "m.gguf"}, torch.float32)
    assert (model.config._commit_hash, model.name_or_path, model.config.name_or_path) == (COMMIT, *2 * ("org/tiny",))
    assert f"commit {COMMIT}, was taken" in caplog.text
    (repo / "m.gguf").unlink()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    config = Qwen2Config(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, vocab_size=320)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)  # of which transformers makes a tokenizer of one token
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_base({**NODE, "path": str(tmp_path)})


def test_a_full_disk_is_found_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(ModelError, match=r"takes .* kB, 256\.0 MB should stay free, and the disk of .* has 1\.0 MB"):
        fetch(NODE, bars=False)
    assert hub.fetched() == []


def test_without_a_network_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(NODE, bars=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fetch(NODE, bars=False)
    load_base(NODE)
    with pytest.raises(ModelError, match=r"'org/other' from http://127\.0\.0\.1:9 broke off or could not begin"):
        fetch({**NODE, "path": "org/other"}, bars=False)


@pytest.mark.parametrize(("executor", "weights"), [
    (["executor=local"], SHARDS), (["executor=ray", "executor.address=ray://elsewhere:10001"], 0)])
def test_the_driver_downloads_before_its_workers_start(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       executor: list[str], weights: int) -> None:
    config = load_config(["+model=hf", "model.path=org/tiny", "data=tiny", "device=cpu", *executor])
    assert make_spec(config).hidden_size == 64
    assert not any(name.endswith(".safetensors") for name in hub.fetched())  # shapes need none
    fetched: list[str] = []
    for name in ("LocalExecutor", "RayExecutor"):
        monkeypatch.setattr(f"qra_bo.pipeline.executors.{name}", lambda *_: fetched.extend(hub.fetched()))
    make_executor(config, tmp_path)
    assert sum(name.endswith(".safetensors") for name in fetched) == weights


def test_a_finished_run_downloads_its_base_again(hub: Hub) -> None:
    manifest: Any = SimpleNamespace(model=NODE, stored=False)
    gated: Any = SimpleNamespace(model={**NODE, "path": "org/gated"}, stored=False)
    model, _ = dense_base(manifest, Path("run"), trust_remote_code=False)
    assert model.config._commit_hash == COMMIT
    hub.gated.add("org/tiny")
    dense_base(manifest, Path("run"), trust_remote_code=False)  # what is there can be used without an account
    with pytest.raises(ModelError, match="is gated"):
        dense_base(gated, Path("run"), trust_remote_code=False)


def test_a_redirecting_repository_is_refused_before_its_weights(hub: Hub, repo: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(repo, evil)
    config = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    hub.repos["org/evil"] = evil
    with pytest.raises(ModelError, match="redirects the reading"):
        fetch({**NODE, "path": "org/evil"}, bars=False)
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_weights_are_mapped_and_not_copied(repo: Path) -> None:
    model, _ = load_base({**NODE, "path": str(repo)})
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [tuple(int(end, 16) for end in m[0].split("-")) for m in maps if m[-1].endswith(".safetensors")]
    for name, parameter in model.named_parameters():
        assert any(first <= parameter.data_ptr() < last for first, last in spans), name
    with safe_open(repo / f"model-00001-of-0000{SHARDS}.safetensors", framework="pt") as shard:
        assert set(shard.keys()) <= set(model.state_dict())


def test_a_preset_takes_a_folder_instead_of_the_hub(hub: Hub, repo: Path) -> None:
    node = load_config(["+model=qwen2_5_0_5b_instruct", f"model.path={repo}", "data=tiny"]).model
    assert source_folder(node) == repo
    assert hub.requests == []
