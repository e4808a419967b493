"""A run on a mixture of experts: it reloads, and is exported where experts have a form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qra_bo.config import load_config
from qra_bo.export.load import load
from qra_bo.export.registry import SMALL, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import PROBE, read_manifest
from qra_bo.finetune.models.load import without_bars
from qra_bo.pipeline.prepare import make_setting
from qra_bo.utils.errors import ConfigError, ModelError
from tests.export.allocations import rows_of
from tests.export.finished import exported, finish
from tests.finetune.test_experts import tiny_mixture

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", name="base")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    with without_bars():
        tiny_mixture("qwen3_moe", vocab_size=320, pad_token_id=256, moe_intermediate_size=64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return finish(tmp_path_factory.mktemp("experts") / "run", ("sym3-g32", "sym4-g32"), (2, 4), "dtype=float32",
                  "adapter.experts=each", "quantizer.rounding=gptq", base=base)


def probe(model: Any, run: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=load_file(run / PROBE)["input_ids"], use_cache=False).logits
    return found


def test_the_run_reloads_to_the_logits_of_its_end(run: Path) -> None:
    modules = read_manifest(run).modules
    assert len(modules) == 2 * (4 + 2 * 6)
    assert {record.format.bits for name, record in modules.items() if ".0.mlp.experts." in name} == {3}
    found, kept = probe(load(run)[0], run), load_file(run / PROBE)["logits"]
    torch.testing.assert_close(found, kept, rtol=1e-5, atol=1e-5)


def test_experts_are_merged_into_stacks_again(run: Path) -> None:
    exported(run, ["merged"])
    for row in rows_of(FinishedRun.read(run), "merged", load_file(run / PROBE)["input_ids"][0]):
        assert row.largest is not None, row
        assert row.largest <= 0.05, row


@pytest.mark.parametrize("target", ["compressed_tensors", "gguf", "mlx"])
def test_targets_without_a_form_for_experts_refuse(run: Path, base: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=f"{target} have no form for a mixture of experts"):
        export_all(FinishedRun.read(run), [target])
    config = load_config(["task=finetune", "allocation=uniform:4,2", "+model=hf", f"model.path={base}",
                          f"export.targets=[{target}]"])
    with pytest.raises(ConfigError, match=f"{target} have no form for a mixture of experts"):
        make_setting(config)


def test_the_small_exports_are_written(run: Path) -> None:
    assert len(export_all(FinishedRun.read(run), SMALL)) >= len(SMALL)
    assert "loads them on no other model" in " ".join((run / "adapter" / "README.md").read_text().split())


def test_a_quantised_mixture_of_another_family_gets_one_answer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt_oss", "num_local_experts": 4, "quantization_config": {"quant_method": "mxfp4"}}')
    with pytest.raises(ModelError, match="'gpt_oss' has layers of experts that are not trained here"):
        make_setting(load_config(["task=memory", "+model=hf", f"model.path={tmp_path}"]))
