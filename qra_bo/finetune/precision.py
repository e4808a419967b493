"""Forward passes in fp32 over a base that computes in bfloat16, for differences that are smaller than its rounding."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.tables import PackedTable

WIDENED_NUMEL = 1 << 24
"""Numbers of a weight that are widened at a time: a large head has no copy of its own."""


@contextmanager
def in_float32(bank: LayerBank) -> Iterator[None]:
    """Compute activations and logits of a bank's model in fp32 within the block, without gradients.

    Weights stay in their types, and each is widened when its layer runs. CUDA multiplies in TF32 meanwhile, whose
    rounding is an eighth of bfloat16's, as fp16's is. Models that compute in fp32 or fp16 are left as they are.
    """
    if bank.compute_dtype != torch.bfloat16:
        yield
        return
    model, precision = bank.model, torch.get_float32_matmul_precision()
    tables = [module for module in model.modules() if isinstance(module, PackedTable)]
    hook = model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: out.float())
    if bank.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        bank.multiply_in(torch.float32)
        for table in tables:
            table.product_dtype = torch.float32
        with _Widened():
            yield
    finally:
        hook.remove()
        torch.set_float32_matmul_precision(precision)
        bank.multiply_in(None)
        for table in tables:
            table.product_dtype = None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` in fp32, some rows of ``W`` (``out x in``) at a time."""
    x, offset = x.float(), None if bias is None else bias.float()
    rows = max(1, WIDENED_NUMEL // weight.shape[1])
    if weight.dtype == torch.float32 or rows >= len(weight):
        return functional.linear(x, weight.float(), offset)
    out = x.new_empty(*x.shape[:-1], len(weight))
    for first in range(0, len(weight), rows):
        part = slice(first, first + rows)
        out[..., part] = functional.linear(x, weight[part].float(), None if offset is None else offset[part])
    return out


def _norm(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def widened(*args: Any, **kwargs: Any) -> Tensor:
        return norm(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})
    return widened


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


_IN_FP32: Mapping[Any, Callable[..., Tensor]] = {
    functional.linear: _product, functional.layer_norm: _norm(functional.layer_norm),
    functional.rms_norm: _norm(functional.rms_norm)}
"""What takes fp32 activations and 16-bit weights here, and not in torch."""


class _Widened(TorchFunctionMode):
    """Computes the functions of ``_IN_FP32`` in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        return _IN_FP32.get(func, func)(*args, **(kwargs or {}))
