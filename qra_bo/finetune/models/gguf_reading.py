"""How transformers reads a GGUF file: once, and without a bar of its own; and what its weights were rounded to."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qra_bo.finetune.models.gguf_header import ROPE, Header, QuickReader, read_header
from qra_bo.utils.errors import ModelError


@contextmanager
def reading_gguf() -> Iterator[None]:
    """Parse a GGUF file once within the block, and show no bar, which transformers' own switch for bars does not reach.

    transformers parses the whole file for the configuration, for the tokenizer and for the weights, and makes the map
    of the tensors' names anew for every module of the model: ten seconds for a model of 135 M parameters.
    """
    originals = gguf.GGUFReader, gguf.get_tensor_name_map, getattr(reader, "tqdm", None)
    if not isinstance(gguf.GGUFReader, type):  # within such a block
        yield
        return
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(QuickReader), cache(gguf.get_tensor_name_map)
    reader.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reader.tqdm = originals


def origin_of(path: Path) -> str | None:
    """Return the format of most weights of a GGUF file, in words; ``None`` where it has 16 bits or more."""
    numel = Counter[gguf.GGMLQuantizationType]()
    for tensor in read_header(path).tensors.values():
        numel[tensor.tensor_type] += int(tensor.n_elements)
    kind = max(numel, key=numel.__getitem__)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    bits = 8 * size / per_block
    return None if bits >= 16 else f"dequantised from {path.name}: {kind.name}, {bits:.3g} bits a weight with scales"


def stretch(config: Any, header: Header) -> None:
    """Give ``config`` the entry of Llama 3.1 and later that divides rotary frequencies as the file does: transformers
    passes over the file's divisors. Between 1 and the factor they tell the original context."""
    divisors = torch.tensor(dequantize(header.tensors[ROPE].data, header.tensors[ROPE].tensor_type))
    base, factor = config.rope_parameters["rope_theta"], float(divisors.max())
    plain = base ** -(torch.arange(len(divisors)) / len(divisors))
    smooth = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    contexts = (2 * torch.pi / plain * (1 + 3 * smooth))[(divisors > 1) & (divisors < factor)]
    config.rope_parameters = {
        "rope_theta": base, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": round(float(contexts.median())) if len(contexts) else 8192}
    made, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    if made.shape != plain.shape or not torch.allclose(made, plain / divisors, rtol=1e-4, atol=0):
        raise ModelError(f"{header.path} divides rotary frequencies otherwise than Llama 3.1; choose another model")
