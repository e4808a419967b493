"""Packed linears as codes with a scale and a zero a group, however their backend packs them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qra_bo.export.weights import LinearWeights
from qra_bo.finetune.quantization.planes import codes_of, words_of


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


def affine_codes(linear: LinearWeights, group: int | None = None) -> Affine:
    """Return the codes of a linear in an affine format.

    Args:
        linear: In a format of the backend ``integer`` or ``hqq``.
        group: Weights of a group: a divisor of the format's and of the columns; ``None`` for the format's own.
    """
    state, fmt, (rows, columns) = linear.state, linear.format, linear.shape
    group = fmt.block if group is None else group
    codes = codes_of(words_of(state), fmt, state["scale"].numel())
    zero = state.get("zero", torch.full_like(state["scale"], float(1 << fmt.bits - 1)))
    scale, zero = (part.float().reshape(-1).repeat_interleave(fmt.block // group).view(rows, columns // group)
                   for part in (state["scale"], zero))
    return Affine(codes.view(rows, columns), scale, zero)
