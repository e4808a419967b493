"""Packed linears as codes with a scale and a zero a group, however their backend packs them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qra_bo.export.weights import LinearWeights
from qra_bo.finetune.quantization.base import backend_of, packed
from qra_bo.space import StorageFormat


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight is ``(code - zero) * scale``; a group is a run of columns of one row.

    Args:
        codes: ``out x in``, uint8.
        scale: ``out x groups``, fp32, and ``zero`` too.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor


def has_affine_codes(fmt: StorageFormat, columns: int) -> bool:
    """Return whether the format is affine by groups that do not go beyond a row of ``columns`` weights."""
    return fmt.backend in ("integer", "hqq") and columns % fmt.block == 0


def affine_codes(linear: LinearWeights) -> Affine:
    """Return the codes of a linear for which ``has_affine_codes``."""
    state, fmt, (rows, columns) = linear.state, linear.format, linear.shape
    by_group = rows, columns // fmt.block
    scale = state["scale"].float().reshape(by_group)
    if fmt.backend == "integer":
        from qra_bo.finetune.quantization.integer import integer_codes  # beside HQQ's library, which is slow to import
        zero = state["zero"].float() if "zero" in state else torch.full(by_group, float(1 << fmt.bits - 1))
        return Affine(integer_codes(state, fmt, linear.shape), scale, zero)
    bare = {**state, "scale": torch.ones_like(state["scale"]), "zero": torch.zeros_like(state["zero"])}
    unpacked = packed(backend_of(fmt).build(bare, fmt, linear.shape, None, torch.float32)).unpack()
    return Affine(unpacked.to(torch.uint8), scale, state["zero"].float().reshape(by_group))
