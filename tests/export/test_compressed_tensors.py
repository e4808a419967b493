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
from qra_bo.export import vllm
from qra_bo.export.comparison import with_adapter
from qra_bo.export.compressed_tensors import FOLDER, in_words
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.pipeline.exports import refuse_base
from qra_bo.utils.errors import ConfigError
from tests.export.allocations import Case, build, build_on, rows_of
from tests.export.finished import exported

RUN = Case(5, "llama", False, 2, "bfloat16", ("sym2-g64", "sym3-g32", "fp16", "sym8-g64", "sym5-g64"), (1, 4, 0, 3))


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    run = build(RUN, tmp_path_factory.mktemp("symmetric"))
    exported(run.folder, ["compressed_tensors"])
    return run


def test_plain_transformers_computes_the_same_logits_in_16_bits(run: FinishedRun) -> None:
    ids = torch.arange(48)[None]
    plain = AutoModelForCausalLM.from_pretrained(str(run.folder / FOLDER), dtype=torch.bfloat16)
    mixed = load(run.folder, adapter=False)[0]
    mixed.set_attn_implementation("sdpa")  # the kernel that plain transformers takes
    with torch.no_grad():
        assert torch.equal(plain.eval()(input_ids=ids).logits, mixed(input_ids=ids).logits)
        own, found = (with_adapter(model, run.adapter).eval()(input_ids=ids).logits for model in (mixed, plain))
    assert torch.equal(found, own)


def test_an_adapter_of_one_rank_computes_the_same_logits(run: FinishedRun) -> None:
    folder = run.folder / vllm.FOLDER
    folder.mkdir(parents=True)
    vllm.write_adapter(run, folder)
    [row] = rows_of(run, "vllm", torch.arange(48))
    assert row.largest is not None
    assert row.largest < 1e-4


def test_folder_brings_tokenizer_and_type(run: FinishedRun) -> None:
    folder = run.folder / FOLDER
    assert AutoTokenizer.from_pretrained(str(folder))("one")["input_ids"] == list(b"one")
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == run.manifest.compute_dtype
    assert config["use_cache"] is True
    assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()


def test_codes_take_their_bits_in_the_file(run: FinishedRun) -> None:
    tensors = load_file(run.folder / FOLDER / "model.safetensors")
    for name, record in run.manifest.modules.items():
        if record.format.bits == 16:
            continue
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
