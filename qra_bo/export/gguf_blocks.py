"""Packed linears as blocks of GGUF: a block is 32 consecutive weights of a row with a scale in fp16.

| form | a weight | bits a weight | formats that it holds |
|---|---|---|---|
| Q4_0 | d * (q - 8), q < 16 | 4.5 | sym2 to sym4, int2, int3: exact |
| Q5_0 | d * (q - 16), q < 32 | 5.5 | sym5, int4: exact |
| Q8_0 | d * q, q within -128 ... 127 | 8.5 | sym of 6 to 8 bits: exact |
| Q4_1 | d * q + m, q < 16 | 5.0 | HQQ of 2 to 4 bits; m = -scale * zero is rounded to fp16 |
| Q5_1 | d * q + m, q < 32 | 6.0 | HQQ of 5 bits; as Q4_1 |

``q - zero`` of an integer zero lies within -7 ... 7 for 3 bits and -15 ... 15 for 4: a form with an offset, which would
be rounded, is not needed. NF4 has levels of its own, LLM.int8 one scale a row in fp32,
HQQ of 6 and 8 bits zeros between codes, and int8 differences of 9 bits: no form holds them. Layout of the blocks:
``ggml-common.h`` of llama.cpp.
"""

from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Form
from torch import Tensor

from qra_bo.export.weights import LinearWeights
from qra_bo.memory.file_formats import BACKEND
from qra_bo.memory.serving import gguf_bits
from qra_bo.space import StorageFormat

BLOCK = 32
Array = np.ndarray[Any, Any]
_EXACT = {4: Form.Q4_0, 5: Form.Q5_0, 8: Form.Q8_0}
_ROUNDED = {4: Form.Q4_1, 5: Form.Q5_1}
"""Forms by their code bits."""


def form_of(fmt: StorageFormat, columns: int) -> Form | None:
    """Return the form that holds a linear of ``columns`` columns in format ``fmt``; ``None`` where there is none.

    A form of blocks needs rows of whole blocks. Weights of 16 bits stay F16 or BF16, by their own type.
    """
    if fmt.backend == BACKEND:
        return Form[fmt.name]
    if fmt.backend == "none":
        return Form.F16
    bits = gguf_bits(fmt)
    return None if bits is None or columns % BLOCK else (_EXACT if is_exact(fmt) else _ROUNDED)[bits]


def is_exact(fmt: StorageFormat) -> bool:
    """Whether the form of ``fmt`` holds its very values."""
    return fmt.is_base or fmt.backend == "integer"


def linear_blocks(linear: LinearWeights, rows: Tensor) -> Array:
    """Return the blocks of ``rows`` of a linear that has a form, ``rows x bytes`` (uint8), in their order."""
    if linear.format.backend == BACKEND:
        stored: Array = linear.state["codes"][rows].numpy()
        return stored
    form = form_of(linear.format, linear.shape[1])
    codes, scale, zero = (part[rows] for part in linear.affine(BLOCK))
    codes = codes.to(torch.int16)
    halves = [scale]
    if form in _ROUNDED.values():
        halves.append(-scale * zero)
    else:
        middle = {Form.Q4_0: 8, Form.Q5_0: 16, Form.Q8_0: 0}[form]
        codes = codes - zero.repeat_interleave(BLOCK, 1).to(codes.dtype) + middle
    blocks = codes.numpy().reshape(len(codes), -1, BLOCK)
    found = [half.to(torch.float16).numpy()[..., None].view(np.uint8) for half in halves]  # out x blocks x 2
    if form == Form.Q8_0:
        found.append(blocks.astype(np.int8).view(np.uint8))
    else:
        if form in (Form.Q5_0, Form.Q5_1):
            found.append(np.packbits((blocks >> 4).astype(np.uint8), axis=-1, bitorder="little"))
        low, high = blocks[..., :BLOCK // 2] & 15, blocks[..., BLOCK // 2:] & 15
        found.append((low | high << 4).astype(np.uint8))
    return np.concatenate(found, axis=-1).reshape(len(codes), -1)
