"""Forward passes in fp32 over a base that computes in bfloat16, for differences that are smaller than its rounding."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qra_bo.finetune.models.load import repeated
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import HALF

WIDENED_NUMEL = 1 << 24
"""Numbers of a weight that are widened at a time: no large matrix has a whole copy in fp32."""


@contextmanager
def in_float32(bank: LayerBank) -> Iterator[None]:
    """Compute activations and logits of a bank's model in fp32 within the block, without gradients.

    Weights stay in their types and are widened where a layer uses them. CUDA multiplies in TF32 meanwhile: it rounds an
    eighth as coarsely as bfloat16, like fp16. Models that compute in fp32 or fp16 are left as they are.
    """
    if bank.compute_dtype != torch.bfloat16:
        yield
        return
    with ExitStack() as stack:
        if bank.device.type == "cuda":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
        embedding = bank.model.get_input_embeddings()
        stack.callback(embedding.register_forward_hook(lambda _module, _args, rows: rows.float()).remove)
        stack.callback(bank.multiply_in, None)
        bank.multiply_in(torch.float32)
        stack.enter_context(_Widened())
        yield


class _Widened(TorchFunctionMode):
    """Widens 16-bit arguments that meet fp32 ones, where torch would refuse the mix or return to 16 bits."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        dtypes = {value.dtype for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if torch.float32 in dtypes and func is functional.scaled_dot_product_attention and kwargs.get("enable_gqa"):
            func = _ungrouped_attention
        elif torch.float32 not in dtypes or dtypes.isdisjoint(HALF) or "out" in kwargs or _changes_its_argument(func):
            return func(*args, **kwargs)
        elif func is functional.linear:
            return _product(*args, **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})


def _changes_its_argument(func: Any) -> bool:
    name = func.__name__
    return name in ("__setitem__", "__set__") or name.startswith("__i") \
        or (name.endswith("_") and not name.startswith("__"))


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _ungrouped_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool,
                         **kwargs: Any) -> Tensor:
    """Attention with keys and values repeated for every query head: in fp32 CUDA's fused kernel takes no groups."""
    return functional.scaled_dot_product_attention(query, *repeated(query, key, value), *args, **kwargs)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` in fp32, some rows of ``W`` (``out x in``) at a time."""
    x, bias, rows = _wide(x), _wide(bias), max(1, WIDENED_NUMEL // weight.shape[1])
    if rows >= len(weight):
        return functional.linear(x, _wide(weight), bias)
    out = x.new_empty(*x.shape[:-1], len(weight))
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        out[..., part] = functional.linear(x, _wide(weight[part]), None if bias is None else bias[part])
    return out
