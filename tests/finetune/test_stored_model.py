"""Models over the codes of GGUF files, against transformers on the dequantised weights; damaged files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from qra_bo.export.gguf_file import Source
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.gguf_tokenizer import vocabulary_of
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.gguf_header import read_header
from qra_bo.finetune.models.load import load_base
from qra_bo.finetune.quantization.stored import StoredLinear, StoredTable, unpacked
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.finetune.quantization.tables import PackedEmbedding
from qra_bo.memory.file_formats import TYPES
from qra_bo.memory.formats import parse_format
from qra_bo.utils.errors import ModelError
from tests.export.test_decoders import DECODERS, decoder
from tests.finetune import stored_files
from tests.finetune.stored_files import HEADS, HIDDEN, INNER, MIXED, llama3_divisors, write_file
from tests.finetune.test_packed_folders import assert_equal, logits

SIMPLE = dict.fromkeys(MIXED, "Q4_0")


class HostTracker(PeakTracker):
    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "meta":
            super()._see(tensor)


def node(path: Path) -> dict[str, Any]:
    return {"name": "random", "source": "path", "path": str(path.parent), "gguf_file": path.name, "revision": None,
            "trust_remote_code": False}


@pytest.mark.parametrize(("architecture", "tables"), [("llama", ("Q8_0",)), ("llama", ("Q6_K", "Q5_0")),
                                                      ("qwen2", ("F16", "Q4_K"))])
def test_logits_and_gradients_equal_those_of_dequantised_weights(tmp_path: Path, architecture: str,
                                                                 tables: tuple[str, ...]) -> None:
    path = write_file(tmp_path / "m.gguf", architecture=architecture, tables=tables)
    stored, _ = load_stored(node(path), torch.float32)
    dense, _ = load_base(node(path))
    assert sum(isinstance(m, StoredLinear) for m in stored.modules()) == 14
    assert_equal(stored, dense.float())


@pytest.mark.parametrize("more", [{}, {"attn_q": "TQ1_0 TQ2_0", "attn_k": "MXFP4 IQ4_NL", "ffn_up": "Q5_0 Q5_K"}])
def test_llamacpp_dequantises_to_the_same_bits(tmp_path: Path, more: dict[str, str]) -> None:
    bindings = pytest.importorskip("llama_cpp_py_sync._cffi_bindings")
    path, lib = write_file(tmp_path / "m.gguf", types={**MIXED, **more}), bindings.get_lib()
    options = bindings.get_ffi().new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    options.ftype, options.allow_requantize, options.nthread = 0, True, 1  # all in F32
    assert lib.llama_model_quantize(str(path).encode(), str(tmp_path / "f.gguf").encode(), options) == 0
    theirs = read_header(tmp_path / "f.gguf").tensors
    for name, tensor in read_header(path).tensors.items():
        if tensor.tensor_type.name in TYPES:
            blocks = torch.from_numpy(np.array(tensor.data))
            ours = unpacked(blocks, parse_format(tensor.tensor_type.name), torch.float32)
            assert ours.numpy().tobytes() == theirs[name].data.tobytes()


@pytest.mark.parametrize("name", ["llama", "llama 3.1", "mistral", "qwen2, untied", "qwen3"])
def test_decoders_compute_transformers_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, weights = decoder(DECODERS[name])
    path = tmp_path / "m.gguf"
    Source(weights, layout_of(weights.config), vocabulary_of(weights.tokenizer, 320), "random").write_model(path)
    without_tokenizer(monkeypatch)
    stored, _ = load_stored(node(path), torch.float32)
    torch.testing.assert_close(logits(stored), logits(model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(load_base(node(path))[0].float()), logits(model), rtol=1e-4, atol=1e-4)


def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every model the tokenizer of bytes: transformers reads none without merges."""
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: byte_tokenizer())


@pytest.mark.parametrize("name", ["llama, linear", "llama, tied, biases", "gemma3", "phi3, partial"])
def test_decoders_that_transformers_reads_otherwise_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                name: str) -> None:
    _, weights = decoder(DECODERS[name])
    path = tmp_path / "m.gguf"
    Source(weights, layout_of(weights.config), vocabulary_of(weights.tokenizer, 320), "random").write_model(path)
    without_tokenizer(monkeypatch)
    with pytest.raises(ModelError):
        load_stored(node(path), torch.float32)
    with pytest.raises(ModelError, match=r"turns|holds .* weights"):
        load_base(node(path))


def test_files_in_parts_are_read_as_one(tmp_path: Path) -> None:
    whole = write_file(tmp_path / "m.gguf", tables=("Q8_0", "Q4_K"))
    part = write_file(tmp_path / "p.gguf", tables=("Q8_0", "Q4_K"), most_tensors=7)
    assert part.name.startswith("p-00001-of-0000")
    models = [load_stored(node(path), torch.float32)[0] for path in (whole, part)]
    assert torch.equal(*map(logits, models))
    with pytest.raises(ModelError, match="codes=stored, or join"):
        load_base(node(part))
    (lone := tmp_path / "lone.gguf").write_bytes(part.read_bytes())
    with pytest.raises(ModelError, match=r"one of \d parts"):
        read_header(lone)
    second = next(tmp_path.glob("p-00002-*"))
    second.write_bytes(whole.read_bytes())
    with pytest.raises(ModelError, match=r"another part holds blk\.0"):
        read_header(part)
    second.unlink()
    with pytest.raises(ModelError, match="00002"):
        read_header(part)


@pytest.mark.parametrize("load", [lambda node: load_stored(node, torch.float32), load_base])
def test_divisors_of_frequencies_are_those_of_llama_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      load: Callable[[Any], Any]) -> None:
    plain, divided = (load(node(write_file(tmp_path / f"{rope}.gguf", rope=rope)))[0] for rope in (False, True))
    ratio = plain.model.rotary_emb.inv_freq / divided.model.rotary_emb.inv_freq
    torch.testing.assert_close(ratio, torch.from_numpy(divisors := llama3_divisors(HIDDEN // HEADS)))
    assert len(set(divisors)) > 2
    assert divided.config.rope_parameters["rope_type"] == "llama3"  # exports read it there
    monkeypatch.setattr(stored_files, "llama3_divisors", lambda _: divisors[::-1])
    with pytest.raises(ModelError, match="otherwise than Llama"):
        load(node(write_file(tmp_path / "other.gguf", rope=True)))


def test_loading_makes_no_dense_matrix(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf")
    load_stored(node(path), torch.bfloat16)  # imports, caches
    with HostTracker() as tracker:
        model, _ = load_stored(node(path), torch.bfloat16)
    packed = sum(b.numel() for m in model.modules() if isinstance(m, StoredLinear | StoredTable)
                 for b in (m.packed_state()["codes"],))
    assert packed < tracker.peak_bytes < packed + 4 * HIDDEN * INNER  # one linear in fp32
    assert isinstance(model.get_input_embeddings(), PackedEmbedding)


def changed(path: Path, name: str, **fields: int) -> Path:
    """Return a copy of a file with other numbers in the header's entry of one tensor."""
    data, tensor = bytearray(path.read_bytes()), read_header(path).tensors[name]
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + 4
    places = {"columns": (at, "<Q"), "rows": (at + 8, "<Q"), "kind": (at + 16, "<I"), "offset": (at + 20, "<Q")}
    for field, value in fields.items():
        struct.pack_into(places[field][1], data, places[field][0], value)
    assert tensor.n_bytes
    other = path.with_name("changed.gguf")
    other.write_bytes(data)
    return other


@pytest.mark.parametrize("fields", [
    {"rows": 2**31}, {"columns": 2**62}, {"rows": 0}, {"columns": 96}, {"kind": 77}, {"kind": 16}, {"kind": 0},
    {"kind": 12}, {"offset": 2**40}, {"offset": 33}, {"rows": 128}])
def test_damaged_entries_are_refused_in_one_sentence(tmp_path: Path, fields: dict[str, int]) -> None:
    path = changed(write_file(tmp_path / "m.gguf", types=SIMPLE), "blk.0.attn_q.weight", **fields)
    with pytest.raises(ModelError) as caught:
        load_stored(node(path), torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.2, 0.6, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = write_file(tmp_path / "m.gguf", types=SIMPLE)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    with pytest.raises(ModelError):
        load_stored(node(path), torch.float32)


def test_counts_beyond_the_file_end_at_once(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf", types=SIMPLE)
    for at in (8, 16):  # tensors, keys
        data = bytearray(path.read_bytes())
        struct.pack_into("<Q", data, at, 2**60)
        (tmp_path / "n.gguf").write_bytes(data)
        with pytest.raises(ModelError):
            read_header(tmp_path / "n.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    struct.pack_into("<Q", data, at + 8, 2**60)
    (tmp_path / "n.gguf").write_bytes(data)
    with pytest.raises(ModelError):
        read_header(tmp_path / "n.gguf")


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "token_embd.weight", "blk.0.attn_norm.weight"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / "m.gguf", types=SIMPLE)
    data = np.memmap(path, mode="r+")
    data[read_header(path).tensors[name].data_offset:][:4] = 0xFF
    data.flush()
    with pytest.raises(ModelError, match="finite"):
        load_stored(node(path), torch.float32)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    for name in ("blk.0.ffn_up.weight", "output_norm.weight"):
        data = write_file(tmp_path / "m.gguf", types=SIMPLE).read_bytes()
        (tmp_path / "o.gguf").write_bytes(data.replace(name.encode(), name.replace("w", "v").encode()))
        with pytest.raises(ModelError):
            load_stored(node(tmp_path / "o.gguf"), torch.float32)
    with pytest.raises(ModelError):
        load_stored(node(write_file(tmp_path / "b.gguf", architecture="gemma2")), torch.float32)
