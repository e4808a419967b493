"""Schemas of custom operators that this code relies on without a promise of their libraries; some run on CUDA alone.

A new version that changes one of them fails here, with the name, and not within a training.
"""

import pytest
import torch

OPERATORS = {
    "bitsandbytes::dequantize_4bit": ["A", "absmax", "blocksize", "quant_type", "shape", "dtype"],
    "bitsandbytes::dequantize_blockwise": ["A", "absmax", "code", "blocksize", "dtype"],
    "bitsandbytes::quantize_4bit": ["A", "blocksize", "quant_type", "quant_storage"],
    "bitsandbytes::int8_vectorwise_quant": ["A", "threshold"],
    "aten::_scaled_dot_product_flash_attention": ["query", "key", "value", "dropout_p", "is_causal",
                                                  "return_debug_mask", "scale"]}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_the_arguments_that_are_passed(name: str) -> None:
    (schema,) = [s for s in torch._C._jit_get_schemas_for_operator(name) if not s.overload_name]
    assert [argument.name for argument in schema.arguments] == OPERATORS[name]
