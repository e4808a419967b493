"""Tensors for exporters are those that the run's own model computes with."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import RunWeights, weights_of
from qra_bo.finetune.manifest import MANIFEST, read_manifest
from qra_bo.utils.errors import ModelError
from qra_bo.utils.files import write_json
from tests.export.allocations import Case, build


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = Case(3, "llama", True, 2, "bfloat16", ("hqq2", "nf4", "int8", "fp16"), (1, 4, 0, 3))
    return build(case, tmp_path_factory.mktemp("weights")).folder


@pytest.fixture(scope="module", name="weights")
def read_run(run: Path) -> RunWeights:
    return weights_of(FinishedRun.read(run))


def test_weights_are_those_of_the_loaded_model(run: Path, weights: RunWeights) -> None:
    model = load(run, adapter=False)[0]
    assert list(weights.linears) == list(read_manifest(run).modules)
    for name, linear in weights.linears.items():
        layer = model.get_submodule(name)
        assert linear.state.keys() == layer.packed_state().keys()
        assert torch.equal(linear.dense(torch.bfloat16), layer.unpack())
    others = {name: p for name, p in model.named_parameters() if not name.startswith(tuple(weights.linears))}
    assert weights.others.keys() == others.keys()
    assert all(torch.equal(weights.others[name], p) for name, p in others.items())


def test_a_base_with_other_biases_is_refused(tmp_path: Path) -> None:
    run = build(Case(0, "qwen2", True, 2, "bfloat16", ("sym4-g64", "fp16", "nf4"), (0, 2)), tmp_path / "run")
    load(run.folder)
    manifest = read_manifest(run.folder)
    other = shutil.copytree(manifest.model["path"], tmp_path / "other")
    write_json(run.folder / MANIFEST, replace(manifest, model={**manifest.model, "path": str(other)}).to_json())
    load(run.folder)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.bias"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="its embeddings, norms or biases differ"):
        load(run.folder)
