"""How transformers reads a GGUF file: once, and without a bar of its own; and what its weights were rounded to."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gguf
from transformers import modeling_gguf_pytorch_utils as reader

from qra_bo.finetune.models.gguf_header import QuickReader, read_header


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
    """Return the format that most weights of a GGUF file were quantised to, in words; ``None`` where it has 16 bits or
    more."""
    numel = Counter[gguf.GGMLQuantizationType]()
    for tensor in read_header(path).tensors.values():
        numel[tensor.tensor_type] += int(tensor.n_elements)
    kind = max(numel, key=numel.__getitem__)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    bits = 8 * size / per_block
    return None if bits >= 16 else f"dequantised from {path.name}: {kind.name}, {bits:.3g} bits a weight with scales"
