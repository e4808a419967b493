"""The mixed base as plain transformers loads it: the run's own logits, with and without the adapter."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconConfig, FalconForCausalLM

from qra_bo.config import load_config
from qra_bo.export.comparison import Reference, with_adapter
from qra_bo.export.compressed_tensors import FOLDER, in_words
from qra_bo.export.load import load
from qra_bo.export.registry import TARGETS
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import PROBE, read_manifest
from qra_bo.pipeline.exports import refuse_base
from qra_bo.utils.errors import ConfigError
from tests.export.allocations import Case, build_on
from tests.export.finished import exported, finish

RTN = "quantizer.rounding=rtn"
WIDTHS = (("sym2-g64", "sym3-g32", "sym4-g64", "fp16"), ("sym5-g64", "sym6-g32", "sym8-g64", "sym3-g64"))


@pytest.fixture(scope="module", name="runs")
def make_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for i, formats in enumerate(WIDTHS):
        folder = finish(tmp_path_factory.mktemp("symmetric") / "run", formats, (1, 4, 0, 3 + i), RTN)
        exported(folder, ["compressed_tensors"])
        folders.append(folder)
    return folders


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_computes_the_same_logits(runs: list[Path], which: int, dtype: torch.dtype) -> None:
    run = runs[which]
    ids = load_file(run / PROBE)["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(str(run / FOLDER), dtype=dtype)
    mixed = load(run, adapter=False)[0]
    if dtype == torch.float32:
        reference = Reference(FinishedRun.read(run), ids[0])
        mixed, wanted, adapted = reference.mixed, reference.base, reference.own
    else:
        mixed.set_attn_implementation("sdpa")  # the kernel that plain transformers takes
        wanted = mixed(input_ids=ids).logits[0]
        adapted = with_adapter(mixed, run / "adapter").eval()(input_ids=ids).logits[0]
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits[0], wanted)
        assert torch.equal(with_adapter(plain, run / "adapter").eval()(input_ids=ids).logits[0], adapted)


@pytest.mark.parametrize("which", [0, 1])
def test_check_finds_the_export_exact(runs: list[Path], which: int) -> None:
    run = FinishedRun.read(runs[which])
    loader = TARGETS["compressed_tensors"].loader
    assert loader is not None
    rows = list(loader.rows("compressed_tensors", run, Reference(run, load_file(runs[which] / PROBE)["input_ids"][0])))
    assert [row.result for row in rows] == ["exact", "exact"]


def test_an_adapter_of_one_rank_computes_the_same_logits(runs: list[Path]) -> None:
    exported(runs[0], ["vllm"])
    loader, run = TARGETS["vllm"].loader, FinishedRun.read(runs[0])
    assert loader is not None
    [row] = loader.rows("vllm", run, Reference(run, load_file(runs[0] / PROBE)["input_ids"][0]))
    assert row.largest is not None
    assert row.largest < 1e-5


def test_folder_brings_tokenizer_and_type(runs: list[Path]) -> None:
    folder = runs[0] / FOLDER
    assert AutoTokenizer.from_pretrained(str(folder))("one")["input_ids"] == list(b"one")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == read_manifest(runs[0]).compute_dtype
    assert config["use_cache"] is True
    assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()


def test_codes_take_their_bits_in_the_file(runs: list[Path]) -> None:
    tensors = load_file(runs[1] / FOLDER / "model.safetensors")
    for name, record in read_manifest(runs[1]).modules.items():
        words = tensors[f"{name}.weight_packed"]
        assert words.nbytes * 8 == record.format.bits * record.shape[0] * record.shape[1]
        assert tensors[f"{name}.weight_shape"].tolist() == list(record.shape)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_words_are_those_of_compressed_tensors(bits: int, rows: int, columns: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    signed = (codes - (1 << bits - 1)).to(torch.int8)
    assert torch.equal(in_words(codes.to(torch.uint8), bits), pack_to_int32(signed, bits))


def test_a_decoder_with_linears_of_its_own_is_refused_before_and_after_training(tmp_path: Path) -> None:
    config = FalconConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=320, eos_token_id=257)
    model = FalconForCausalLM(config)
    for serve in ("transformers", "vllm"):
        with pytest.raises(ConfigError, match=f"FalconLinear, which multiply by a dense.*serve={serve} writes this"):
            refuse_base(load_config(["+model=tiny", "data=tiny", f"serve={serve}"]), model, None)
    base = tmp_path / "base"
    model.to(torch.bfloat16).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    node = {"name": "falcon", "source": "path", "path": str(base), "gguf_file": None, "revision": None,
            "trust_remote_code": False}
    run = build_on(node, Case(1, "falcon", True, 4, "bfloat16", ("sym4-g64",), (1,)), tmp_path / "run")
    with pytest.raises(ConfigError, match="this falcon model in compressed-tensors"):
        exported(run.folder, ["compressed_tensors"])
    assert not (run.folder / FOLDER).exists()
