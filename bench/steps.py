"""What measurements of training steps share: seconds on any device, tokens that are text, and the library's layers."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qra_bo.space import Allocation, Unit


def real_tokens(labels: np.ndarray) -> int:
    """Tokens of ``n x length`` packed blocks that are text: padding stands at the end of a row and has no label."""
    has_label = labels != -100
    return int(np.where(has_label.any(axis=1), labels.shape[1] - has_label[:, ::-1].argmax(axis=1), 0).sum())


def synchronise(device: Any) -> None:
    """Wait for what was queued on a GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed(device: Any, action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def replace_linears(model: Any, units: tuple[Unit, ...], allocation: Allocation, dtype: Any, device: Any) -> None:
    """Put bitsandbytes' own layers in the place of the decoder's linears; they quantise when moved to ``device``."""
    import bitsandbytes as bnb
    from torch import nn

    for unit, fmt in zip(units, allocation.formats, strict=True):
        for linear in unit.linears:
            dense = model.get_submodule(linear.name)
            has_bias = dense.bias is not None
            new: nn.Module
            if fmt == "nf4":
                new = bnb.nn.Linear4bit(dense.in_features, dense.out_features, bias=has_bias, compute_dtype=dtype,
                                        compress_statistics=True, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(dense.weight.data, requires_grad=False, compress_statistics=True,
                                               quant_type="nf4", module=new)
            else:
                new = bnb.nn.Linear8bitLt(dense.in_features, dense.out_features, bias=has_bias, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(dense.weight.data, requires_grad=False, has_fp16_weights=False)
            new.bias = dense.bias
            parent, _, child = linear.name.rpartition(".")
            setattr(model.get_submodule(parent), child, new.to(device))
