"""Small GGUF files of random models, with every type of block."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Form
from transformers.convert_slow_tokenizer import bytes_to_unicode

from qra_bo.memory.file_formats import TYPES
from tests.finetune.quantization.test_stored import blocks_of, put_scales, scales_of

SPREAD = 0.05
"""Standard deviation of the weights."""
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, ROWS = 2, 256, 512, 4, 2, 320
MIXED: Mapping[str, str] = {"attn_q": "Q4_K IQ2_S", "attn_k": "Q5_1 IQ1_M", "attn_v": "Q6_K IQ3_S",
                            "attn_output": "Q4_1 IQ2_XXS", "ffn_gate": "Q2_K IQ2_XS", "ffn_up": "IQ4_XS IQ1_S",
                            "ffn_down": "Q3_K IQ3_XXS"}
"""Types of the linears, by GGUF's names; where two are named, in the first and in the last layer."""
SHAPES = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN // 2, HIDDEN), "attn_v": (HIDDEN // 2, HIDDEN),
          "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
          "ffn_down": (HIDDEN, INNER)}


def llama3_divisors(width: int) -> npt.NDArray[np.float32]:
    """Divisors that llama.cpp's converter writes for Llama 3.1, ``width / 2``: of its own code, factor 8."""
    waves = 2 * np.pi * 10000.0 ** (np.arange(0, width, 2) / width)
    smooth = np.clip((8192 / waves - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)


def write_file(path: Path, *, types: Mapping[str, str] = MIXED, tables: Sequence[str] = ("Q8_0",),
               architecture: str = "llama", most_tensors: int = 0, rope: bool = False, dense: bool = False) -> Path:
    """Write a model, with a head of its own where ``tables`` are two, in parts of ``most_tensors`` tensors. With
    ``dense`` the same weights are in F32."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=most_tensors)
    writer.add_name("random")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(ROWS)
    letters = [*bytes_to_unicode().values(), *(f"<|{i}|>" for i in range(ROWS - 258)), "<|endoftext|>", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(letters)
    writer.add_token_types([1] * 256 + [3] * (ROWS - 257) + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    rng = np.random.default_rng(7)

    def matrix(name: str, kind: str, shape: tuple[int, int]) -> None:
        blocks = blocks_of(kind, *shape, seed=len(name) + sum(name.encode())).numpy()
        single = blocks.reshape(-1, TYPES[kind].size)
        factor = SPREAD / gguf.quants.dequantize(blocks, Form[kind]).astype(np.float32).std()
        put_scales(kind, single, scales_of(kind, single) * factor)
        values = gguf.quants.dequantize(blocks, Form[kind]).astype(np.float32)
        if dense:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, blocks, raw_dtype=Form[kind])

    matrix("token_embd.weight", tables[0], (ROWS, HIDDEN))
    for layer in range(LAYERS):
        for kind, shape in SHAPES.items():
            matrix(f"blk.{layer}.{kind}.weight", types[kind].split()[-(layer > 0)], shape)
            if architecture == "qwen2" and kind in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{kind}.bias", rng.standard_normal(shape[0]).astype(np.float32) / 4)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", 1 + rng.standard_normal(HIDDEN).astype(np.float32) / 8)
    writer.add_tensor("output_norm.weight", 1 + rng.standard_normal(HIDDEN).astype(np.float32) / 8)
    if len(tables) == 2:
        matrix("output.weight", tables[1], (ROWS, HIDDEN))
    if rope:
        writer.add_tensor("rope_freqs.weight", llama3_divisors(HIDDEN // HEADS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not most_tensors else sorted(path.parent.glob(f"{path.stem}-*.gguf"))[0]
