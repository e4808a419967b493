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
from qra_bo.finetune.models.load import load_base, without_bars
from qra_bo.pipeline.prepare import make_setting
from qra_bo.space.decoder import MIXTURES, spec_from_model, with_adapters
from qra_bo.utils.errors import ConfigError, ModelError
from tests.export.allocations import Case, build_on, rows_of
from tests.export.finished import exported, finish, probe
from tests.export.test_gguf import check_logits, check_planned_bytes
from tests.finetune.test_experts import tiny_mixture

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


KEPT: dict[str, Any] = dict(vocab_size=320, pad_token_id=256, eos_token_id=257, norm_topk_prob=True)


def saved(model: Any, folder: Path) -> Path:
    with without_bars():
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", name="base")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny_mixture("qwen3_moe", moe_intermediate_size=64, **KEPT), tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return finish(tmp_path_factory.mktemp("experts") / "run", ("sym3-g32", "sym4-g32"), (2, 4), "dtype=float32",
                  "adapter.experts=each", "quantizer.rounding=gptq", "serve=llamacpp", base=base)


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


@pytest.mark.parametrize("family", MIXTURES)
def test_llama_cpp_computes_the_runs_logits(family: str, tmp_path: Path) -> None:
    olmoe = {"num_key_value_heads": 4, "norm_topk_prob": False} if family == "olmoe" else {}
    model = tiny_mixture(family, **KEPT | olmoe)
    for name, parameter in model.named_parameters():
        parameter.data += name.endswith("norm.weight")  # at 0.1, all that the experts do is far below 1e-3
    node = {"name": family, "source": "path", "path": str(saved(model, tmp_path / "base")), "gguf_file": None,
            "revision": None, "trust_remote_code": False}
    for experts, ranks in (("each", (3, 2, 5, 8)), ("none", (3, 5, 8, 2, 0, 0))):
        formats = ("sym4-g64", "int3-g32", "sym8-g32", "fp16", "sym5-g32")
        run = build_on(node, Case(4, family, False, 2, "float32", formats, ranks), tmp_path / experts)
        check_planned_bytes(run, with_adapters(spec_from_model(load_base(node)[0]), experts))
        check_logits(run)


def test_serve_llamacpp_plans_a_mixture(base: Path) -> None:
    config = load_config(["+model=hf", f"model.path={base}", "data=tiny", "serve=llamacpp", "budget=1GB", "bits=[3,4]"])
    assert {fmt.name for fmt in make_setting(config).space.formats} == {"sym3-g64", "sym4-g64"}


@pytest.mark.parametrize("target", ["compressed_tensors", "exl3", "mlx"])
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
