"""Every export with weights is loaded by the program it is for, and its logits are compared with the run's own."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qra_bo.config import load_config
from qra_bo.export.comparison import Reference, divergence
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import weights_of
from qra_bo.finetune.manifest import PACKED, PROBE, read_manifest
from qra_bo.finetune.models.load import load_base
from qra_bo.tasks.export import run as export
from tests.data.chat_templates import TEMPLATES, chat_tokenizer
from tests.export.allocations import Case, base_folder, build_on
from tests.export.finished import exported, finish, probe

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RANKS = (1, 4, 2, 3)
NEAREST = "quantizer.rounding=rtn"
ROUNDING = 0.012
"""Of bfloat16 at logits up to 0.7, whose last bit is 0.004 there, through four layers."""


@pytest.fixture(scope="module", name="mixed")
def make_mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("mixed") / "run", ("hqq2", "nf4", "int8", "fp16"), RANKS, NEAREST)


def test_packed_weights_load_to_the_same_logits(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = probe(load(mixed)[0], mixed)
    assert read_manifest(mixed).packed == PACKED
    monkeypatch.setattr("qra_bo.export.load.backend_of", Unpacked)
    assert torch.equal(probe(load(mixed)[0], mixed), before)


class Unpacked:
    """A backend that builds and will not pack."""

    def __init__(self, fmt: Any) -> None:
        from qra_bo.finetune.quantization.base import backend_of

        self.build, self.empty_state = backend_of(fmt).build, backend_of(fmt).empty_state


def test_merged_model_is_base_plus_update(mixed: Path) -> None:
    exported(mixed, ["merged"])
    folder = mixed / "export" / "merged"
    merged = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    assert merged(input_ids=load_file(mixed / PROBE)["input_ids"]).past_key_values is not None
    assert AutoTokenizer.from_pretrained(str(folder))("one")["input_ids"] == list(b"one")
    tensors, quantised = load_file(mixed / "adapter" / "adapter_model.safetensors"), load(mixed, adapter=False)[0]
    for name in read_manifest(mixed).modules:
        up, down = (tensors[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "BA")
        layer = quantised.get_submodule(name)
        layer.compute_dtype = torch.float32
        assert torch.equal(merged.get_submodule(name).weight, (layer.unpack() + 2.0 * (up @ down)).bfloat16())
    assert float((probe(merged, mixed) - probe(load(mixed)[0], mixed)).abs().max()) < ROUNDING


def test_generation_settings_that_transformers_does_not_save_are_kept(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(self: GenerationConfig, *_: Any, **__: Any) -> None:  # as release 5.0 does
        self.validate(strict=True)

    base = Path(shutil.copytree(base_folder("llama", True, 2), tmp_path / "base"))
    published = {"do_sample": False, "temperature": 0.6, "eos_token_id": 257}
    (base / "generation_config.json").write_text(json.dumps(published))
    tokenizer = chat_tokenizer(TEMPLATES["chatml"])
    tokenizer.save_pretrained(str(base))
    node = {"name": "x", "source": "path", "path": str(base), "gguf_file": None, "revision": None,
            "trust_remote_code": False}
    run = build_on(node, Case(1, "llama", True, 2, "float32", ("fp16",), (1,)), tmp_path / "run").folder
    monkeypatch.setattr(GenerationConfig, "save_pretrained", strict)
    exported(run, ["merged", "compressed_tensors", "mlx"])
    for folder in ("export/merged", "compressed_tensors", "mlx"):
        kept = json.loads((run / folder / "generation_config.json").read_text())
        assert kept["temperature"] == 0.6
        assert kept["eos_token_id"] == [257, tokenizer.convert_tokens_to_ids("<|im_end|>")]  # the template's end too


def test_check_names_loader_difference_and_reason(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(mixed)
    exported(mixed, ["merged"])
    assert export(load_config(["task=export", f"out={mixed}", "export.targets=[card]", "+model=tiny"])) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert lines[0].startswith("manifest and adapter (qra_bo.load): exact, from packed.safetensors")
    rows = {r["what"]: r for r in json.loads((mixed / "export" / "checks.json").read_text())["rows"]}
    assert [*rows] == ["manifest and adapter", "adapter", "merged"] == [line.partition(" (")[0] for line in lines]
    assert rows["adapter"]["largest"] < 1e-5
    assert 0 < rows["merged"]["largest"] < ROUNDING


def test_reference_in_fp32_is_the_model_loaded_to_compute_in_fp32(mixed: Path) -> None:
    ids = load_file(mixed / PROBE)["input_ids"][0]
    reference = Reference(FinishedRun.read(mixed), ids)
    weights = weights_of(FinishedRun.read(mixed))
    for merged, wanted in ((False, reference.base), (True, reference.own)):
        dense = load_base(read_manifest(mixed).model)[0].float()
        dense.load_state_dict({name: t.float() for name, t in weights.others.items()}, strict=False)
        for name, linear in weights.linears.items():
            dense.get_submodule(name).weight.data = (linear.merged if merged else linear.dense)(torch.float32)
        torch.testing.assert_close(reference.logits(dense), wanted, atol=1e-5, rtol=0)


def test_divergence_of_a_known_distribution() -> None:
    own, other = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    wanted = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergence(own.log(), other.log() + 3) == pytest.approx(wanted, rel=1e-6)
    assert divergence(own.log(), own.log()) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_a_failure(value: float) -> None:
    reference = object.__new__(Reference)
    reference.own = torch.zeros(2, 3)
    row = reference.row("as served", torch.tensor([[0.0, value, 0.0]] * 2))
    assert (row.result, row.largest, row.kl) == ("", None, None)
    assert row.note == "failed: it computes logits that are no finite numbers"
