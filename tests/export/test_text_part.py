"""A run on the text decoder of a checkpoint with a vision part: it reloads, and its exports are models of text."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qra_bo.export.load import load
from qra_bo.export.registry import TARGETS
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import PROBE, read_manifest
from tests.export.allocations import rows_of
from tests.export.finished import exported, finish, probe
from tests.finetune.models import tiny_gemma3_with_vision

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FORMATS = ("sym4-g64", "fp16", "sym8-g64", "sym4-g64", "fp16", "sym8-g64")
RANKS = (1, 4, 0, 3, 2, 2)
LARGEST = {"merged": 0.02, "compressed_tensors": 1e-4, "gguf": 0.1, "mlx": 0.1}
"""Largest difference of logits to the run's own by target: merged rounds to 16 bits, llama.cpp and MLX activations."""


@pytest.fixture(scope="module", name="whole")
def make_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_gemma3_with_vision(folder)
    return folder


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    folder = tmp_path_factory.mktemp("text") / "run"
    return finish(folder, FORMATS, RANKS, "quantizer.rounding=rtn", "dtype=float32", base=whole)


def test_the_run_reloads_to_the_logits_of_its_end(run: Path) -> None:
    assert read_manifest(run).model["text_part"] is True
    model, _ = load(run)
    assert model.config.model_type == "gemma3_text"
    assert torch.equal(probe(model, run), load_file(run / PROBE)["logits"])


@pytest.mark.parametrize("target", LARGEST)
def test_exports_are_models_of_text(run: Path, target: str) -> None:
    if target == "mlx":
        pytest.importorskip("mlx_lm")
    exported(run, [target])
    for row in rows_of(FinishedRun.read(run), target, load_file(run / PROBE)["input_ids"][0]):
        assert row.largest is not None, row
        assert row.largest <= LARGEST[target], row
    if target != "gguf":
        config = json.loads((run / TARGETS[target].path / "config.json").read_text())
        assert config["model_type"] == "gemma3_text"
        assert config["architectures"] == ["Gemma3ForCausalLM"]
        assert config["eos_token_id"] == [1, 257]
        assert "vision_config" not in config
