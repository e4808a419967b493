"""What this code relies on in libraries without their promise: schemas of custom operators, signatures, exported names.

A new version that changes one of them fails here, with the name, and not within a training.
"""

import inspect
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional
from hqq.core.quantize import Quantizer
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

OPERATORS = {
    "bitsandbytes::dequantize_4bit": ["A", "absmax", "blocksize", "quant_type", "shape", "dtype"],
    "bitsandbytes::dequantize_blockwise": ["A", "absmax", "code", "blocksize", "dtype"],
    "bitsandbytes::quantize_4bit": ["A", "blocksize", "quant_type", "quant_storage"],
    "bitsandbytes::int8_vectorwise_quant": ["A", "threshold"],
    "aten::_scaled_dot_product_flash_attention": ["query", "key", "value", "dropout_p", "is_causal",
                                                  "return_debug_mask", "scale"]}
SIGNATURES: dict[str, tuple[Any, set[str]]] = {
    "dequantize_blockwise": (functional.dequantize_blockwise, {"absmax", "code", "blocksize"}),
    "quantize_4bit": (functional.quantize_4bit, {"blocksize", "compress_statistics", "quant_type"}),
    "bitsandbytes' AdamW": (bnb.optim.AdamW.__init__, {"optim_bits", "betas", "eps", "weight_decay"}),
    "Quantizer.quantize": (Quantizer.quantize, {"nbits", "group_size", "axis", "bitpack", "device"}),
    "LoraConfig": (LoraConfig.__init__, {"rank_pattern", "alpha_pattern", "target_modules", "lora_dropout"}),
    "sdpa_attention_forward": (sdpa_attention_forward, {"module", "query", "key", "value", "attention_mask"})}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_the_arguments_that_are_passed(name: str) -> None:
    (schema,) = [s for s in torch._C._jit_get_schemas_for_operator(name) if not s.overload_name]
    assert [argument.name for argument in schema.arguments] == OPERATORS[name]


@pytest.mark.parametrize("name", SIGNATURES)
def test_callable_takes_the_arguments_that_are_passed(name: str) -> None:
    function, wanted = SIGNATURES[name]
    assert wanted <= set(inspect.signature(function).parameters)


def test_peft_layers_have_the_attributes_that_the_fused_forward_reads() -> None:
    layer = LoraLayer(torch.nn.Linear(4, 4))
    for name in ("lora_A", "lora_B", "scaling", "r", "lora_dropout", "lora_variant", "active_adapters", "merged",
                 "disable_adapters", "get_base_layer"):
        assert hasattr(layer, name), name
