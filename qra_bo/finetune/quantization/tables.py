"""Embedding and head in a packed format: rows are unpacked where they are looked up, the head a tile of rows at a time.

A tied head shares the embedding's packed tensors. No dense copy of a table is ever made, but where a CPU trades memory
for time, or another trainer asks for a head's weight; the numbers are the same bit for bit.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qra_bo.finetune.quantization.base import Packed, State, frozen
from qra_bo.finetune.quantization.planes import codes_at, weight_of, words_of
from qra_bo.memory.embeddings import tile_rows
from qra_bo.space import StorageFormat


class PackedTable(Packed):
    """A ``v x d`` matrix in a symmetric ``integer`` format, whose groups lie within rows.

    Args:
        state: Packed tensors.
        fmt: Their format.
        shape: ``(v, d)``.
        compute_dtype: Type of the unpacked weights.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, state: State, fmt: StorageFormat, shape: tuple[int, int], compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.fmt, self.shape, self.compute_dtype = fmt, shape, compute_dtype
        self.middle = 1 << fmt.bits - 1
        for name, tensor in state.items():
            self.register_buffer(name, tensor)

    def packed_state(self) -> State:
        return dict(self.named_buffers())

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows of integer ``ids`` of any shape, ``... x d`` in the compute type."""
        return self._rows(ids) if self.dense is None else nn.functional.embedding(ids, self.dense)

    def _rows(self, ids: Tensor) -> Tensor:
        per_row = self.shape[1] // self.fmt.block
        groups = (ids.reshape(-1, 1) * per_row + torch.arange(per_row, device=ids.device)).view(-1)
        values = codes_at(words_of(self.packed_state()), self.fmt, groups).float()
        values.sub_(self.middle).mul_(self.scale.view(-1, 1)[groups].float())
        return values.to(self.compute_dtype).view(*ids.shape, self.shape[1])

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield first and last (exclusive) row of every tile; on the meta device the first stands for all."""
        rows, width = self.shape
        step = tile_rows(rows, width, (self.target or self.codes.device).type)
        last = 1 if self.target is not None else rows
        return ((first, min(first + step, rows)) for first in range(0, last, step))

    def tile(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` to ``last`` (exclusive), ``n x d`` in the compute type."""
        return self._tile(first, last) if self.dense is None else self.dense[first:last]

    def _tile(self, first: int, last: int) -> Tensor:
        per_row = self.shape[1] // self.fmt.block
        return weight_of(words_of(self.packed_state()), self.fmt, self.scale[first:last], self.middle,
                         (last - first, self.shape[1]), self.compute_dtype, self.target, first * per_row)

    def unpack(self) -> Tensor:
        return self.tile(0, self.shape[0])


class PackedEmbedding(nn.Module):
    """An embedding over a packed table.

    Args:
        table: Its weights.
        multiplier: Factor on every row, as Gemma's embedding has; ``None`` for none.
        padding_idx: The base's own; it decides nothing in a frozen embedding.
    """

    def __init__(self, table: PackedTable, multiplier: Tensor | None = None, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table, self.padding_idx = table, padding_idx
        self.num_embeddings, self.embedding_dim = table.shape
        self.register_buffer("multiplier", multiplier, persistent=False)

    @property
    def output_dtype(self) -> torch.dtype:
        """The type of the rows, as there is no parameter that tells it."""
        return self.table.compute_dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Map integer ids of any shape to ``... x d``."""
        rows = self.table.rows(ids)
        return rows if self.multiplier is None else rows * cast(Tensor, self.multiplier).to(rows.dtype)


class PackedHead(nn.Module):
    """A frozen linear layer over a packed table: logits are computed tile by tile."""

    def __init__(self, table: PackedTable, bias: Tensor | None = None) -> None:
        super().__init__()
        self.table, self.bias = table, frozen(bias)
        self.out_features, self.in_features = table.shape

    @property
    def weight(self) -> Tensor:
        """The whole matrix, ``v x d``, unpacked at each use: TRL multiplies by a head's weight without its forward."""
        return self.table.unpack()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... x d`` to ``... x v``; only ``x`` takes a gradient."""
        return cast(Tensor, _TiledProduct.apply(x, self))  # type: ignore[no-untyped-call]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, ``n x v``, of ``n x d`` hidden states in the type of the product."""
        out = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        for first, last in self.table.tiles():
            bias = None if self.bias is None else self.bias[first:last].to(x.dtype)
            out[:, first:last] = nn.functional.linear(x, self.table.tile(first, last), bias)
        return out

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the input, ``n x d`` in fp32, from that of the logits, ``n x v``."""
        total = torch.zeros(len(gradient), self.in_features, dtype=torch.float32, device=gradient.device)
        for first, last in self.table.tiles():
            weight = self.table.tile(first, last)
            total.add_(gradient[:, first:last].to(weight.dtype) @ weight)
            del weight  # not alive beside the next
        return total


class _TiledProduct(torch.autograd.Function):
    """``x W^T + b`` that keeps neither ``x`` nor ``W`` for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: PackedHead) -> Tensor:
        ctx.head = head
        table = head.table
        flat = x.to(table.product_dtype or table.compute_dtype).reshape(-1, head.in_features)
        return head.logits(flat).view(*x.shape[:-1], head.out_features).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        flat = grad.reshape(-1, ctx.head.out_features)
        return ctx.head.input_gradient(flat).view(*grad.shape[:-1], ctx.head.in_features).to(grad.dtype), None
