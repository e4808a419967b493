"""Codes in groups with a scale and a zero each, ``(code - zero) * scale``: the layer and the storage of HQQ's and the
integer formats. What sets them apart is how codes, scales and zeros are found, and the types of these.

A weight is computed in fp32 and rounded once, to the compute type: in bf16 a zero of 200 would be a multiple of 1,
which shifts a whole group of 8-bit codes.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import SERIAL_NUMEL, Grid, LevelBackend, PackedLinear, State, tile_numel
from qra_bo.finetune.quantization.planes import in_planes, weight_of, words_of
from qra_bo.memory.formats import has_zeros
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import ModelError


class GroupedLinear(PackedLinear):
    """A frozen linear layer over packed codes, a scale a group and, in most formats, a zero."""

    def unpack(self) -> Tensor:
        state = self.packed_state()
        zero = state.get("zero", 1 << self.fmt.bits - 1)
        weight = weight_of(words_of(state), self.fmt, state["scale"], zero, (self.out_features, self.in_features),
                           self.compute_dtype, self.target)
        columns = state.get("columns")
        return weight if columns is None else weight.index_select(1, columns)


class GroupedBackend(LevelBackend):
    """Storage of groups, runs of weights in row-major order.

    Attributes:
        metadata_types: Types of scales and zeros.
        by_row: Whether groups lie within rows, so that metadata are ``out x groups of a row`` and not ``groups x 1``.
        in_tiles: Whether a device other than a CPU solves a tile of weights at a time; else all.
    """

    layer = GroupedLinear
    metadata_types: ClassVar[tuple[torch.dtype, torch.dtype]]
    by_row: ClassVar[bool]
    in_tiles: ClassVar[bool] = False

    @abstractmethod
    def solve(self, groups: Tensor, fmt: StorageFormat, roots: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (``n x group``), scales and zeros (``n x 1``) of groups of weights (``n x group``, fp32).

        ``roots`` are factors on the weights' errors, ``n x group`` in fp32; ``None``: all count alike.
        """

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device, importance: Tensor | None = None) -> State:
        """See ``QuantizerBackend.pack``, and ``pack_for_inputs`` for ``importance``. On a CPU runs of groups are solved
        that fit into the cache and that torch does not split between threads: codes are the same on any number of them.

        Raises:
            ModelError: If a scale or a zero is not finite.
        """
        groups = weight.to(device).reshape(-1, fmt.block)
        numel = SERIAL_NUMEL if device.type == "cpu" else tile_numel(device) if self.in_tiles else groups.numel()
        codes = torch.empty(groups.shape, dtype=torch.uint8, device=device)
        scale, zero = (torch.empty(len(groups), 1, dtype=dtype, device=device) for dtype in self.metadata_types)
        every = None if importance is None else importance.sqrt().view(-1, fmt.block)
        indices = torch.arange(len(groups), device=device)
        for index, part, *found in zip(*(torch.split(t, max(1, numel // fmt.block))
                                         for t in (indices, groups, codes, scale, zero)), strict=True):
            roots = None if every is None else every[index % len(every)]
            for out, values in zip(found, self.solve(part.float(), fmt, roots), strict=True):
                out.copy_(values)
        if not (torch.isfinite(scale).all() and torch.isfinite(zero).all()):
            raise ModelError(f"{fmt.name} can't store a weight matrix: its groups need scales or zeros beyond the "
                             "range of fp16; weights are not finite or too large")
        return {**in_planes(codes, fmt), **self._metadata(scale, zero, fmt, len(weight))}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        groups = shape[0] * shape[1] // fmt.block
        codes, scale, zero = (torch.empty(groups, width, dtype=kind, device="meta") for width, kind in zip(
            (fmt.block, 1, 1), (torch.uint8, *self.metadata_types), strict=True))
        return {**in_planes(codes, fmt), **self._metadata(scale, zero, fmt, shape[0])}

    def _metadata(self, scale: Tensor, zero: Tensor, fmt: StorageFormat, rows: int) -> State:
        found = {"scale": scale, "zero": zero} if has_zeros(fmt) else {"scale": scale}
        return {name: values.view(rows, -1) for name, values in found.items()} if self.by_row else found

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        scale = state["scale"].float()
        zero = state["zero"].float() if "zero" in state else float(1 << fmt.bits - 1)
        # Levels of a grid ascend: where the scale is negative they are those of the codes from the highest down.
        lowest = torch.where(scale < 0, (1 << fmt.bits) - 1 - zero, -zero) * scale
        return Grid(range(1 << fmt.bits), scale.abs(), lowest, fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        ascending = codes.reshape(-1, fmt.block)
        stored = torch.where(state["scale"].view(-1, 1).float() < 0, (1 << fmt.bits) - 1 - ascending, ascending)
        return {**state, **in_planes(stored, fmt)}
