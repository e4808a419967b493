"""Contract of the quantiser backends, and the frozen linear layer that all of them build.

Every packed layer computes ``y = x W^T + b`` with one dense ``W`` of the compute type: unpacked in the forward,
dropped, and unpacked again in the backward, so that nothing dense is alive between the two. Training and evaluation
see the same ``W`` on every device.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.memory.formats import known_backend
from qra_bo.space.space import StorageFormat


@dataclass(frozen=True, slots=True)
class Grid:
    """Values that the codes of a weight matrix can take: code ``k`` means ``levels[k] * scale[g] + offset[g]``.

    Group ``g`` is the ``g``-th run of ``group`` weights in row-major order; the last may be shorter.

    Args:
        levels: ``K``, ascending; a range where they are consecutive integers.
        scale: Of every group, at least 0.
        offset: Of every group.
        group: Weights of a group.
        width: Columns of the matrix.
    """

    levels: Tensor | range
    scale: Tensor
    offset: Tensor
    group: int
    width: int

    def spread(self, columns: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return scale and offset, ``n x rows`` in fp32, of the weights of ``n`` columns in the rows from ``first`` to
        ``last`` (exclusive)."""
        if self.width % self.group == 0:  # whole rows are copied instead of single values
            groups = self.width // self.group
            scale, offset = (values.view(-1, groups)[first:last].float().t().contiguous()[columns // self.group]
                             for values in (self.scale, self.offset))
            return scale, offset
        rows = torch.arange(first, last, device=columns.device)
        group = torch.div(columns.unsqueeze(1) + rows * self.width, self.group, rounding_mode="floor")
        return self.scale.view(-1)[group].float(), self.offset.view(-1)[group].float()


HALF = (torch.bfloat16, torch.float16)
State = dict[str, Tensor]
"""Packed tensors of one weight matrix by name; with format and shape they determine its layer.

``codes`` are packed codes, or the first of their ``PLANE_NAMES``; the rest is metadata.
"""
PLANE_NAMES = ("codes", "lower_codes", "lowest_codes")
"""Tensors of a format's planes, the upper bits first."""
SERIAL_NUMEL = (1 << 15) - 1
"""Torch splits reductions of more elements between threads, which changes their last bits."""


def tile_numel(device: torch.device) -> int:
    """Return how many weights are unpacked at a time: the fp32 scratch fits into a CPU's cache."""
    return 1 << 18 if device.type == "cpu" else 1 << 22


def keeping_types(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return ``fn``, which a module is moved or cast by, as a move alone: a tensor keeps its type and its bits.

    It is given plain bytes, which ``half`` and its like leave alone and ``type`` casts without loss; a scale that was
    cast and cast back would be another one.
    """
    def moved(tensor: Tensor) -> Tensor:
        data = tensor.data
        return fn(data.reshape(-1).view(torch.uint8)).to(torch.uint8).view(data.dtype).view(data.shape)

    return moved


class Packed(nn.Module, ABC):
    """A frozen weight matrix in packed tensors.

    ``to``, ``cuda`` and their like, a parent's too, move all of its tensors and cast none.

    Attributes:
        compute_dtype: Type of the unpacked weight and of the matrix product; the output has the type of the input.
        product_dtype: A wider type of the product alone, within ``precision.in_float32``; ``None`` elsewhere.
        dense: The unpacked weight, kept only where memory is traded for time; same numbers, bit for bit.
        target: The device that a module on the meta device stands for; ``None`` on real devices.
    """

    fmt: StorageFormat
    compute_dtype: torch.dtype
    product_dtype: torch.dtype | None = None
    dense: Tensor | None = None
    target: torch.device | None = None

    @abstractmethod
    def packed_state(self) -> State:
        """Return the packed tensors by name."""

    @abstractmethod
    def unpack(self) -> Tensor:
        """Return the dequantised weight, ``out x in`` in the compute type.

        On the meta device this allocates what the real module allocates on ``target``, in the same order.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        move = keeping_types(fn)
        self.dense = None if self.dense is None else move(self.dense)
        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]


class PackedLinear(Packed, nn.Linear):
    """A linear layer over packed weights; its ``weight`` holds the codes.

    Attributes:
        others: The packed tensors beside the codes.
    """

    others: State
    bias: Any

    def packed_state(self) -> State:
        """Return the packed tensors, as ``QuantizerBackend.build`` takes them."""
        return {"codes": self.weight.data, **self.others}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.others = {name: keeping_types(fn)(tensor) for name, tensor in self.others.items()}
        return super()._apply(fn, recurse)

    def weight_matrix(self) -> Tensor:
        """Return the weight of the product, ``out x in`` in the compute type."""
        return self.unpack() if self.dense is None else self.dense

    def forward(self, x: Tensor) -> Tensor:
        """Map ``... x in`` to ``... x out``; only ``x`` takes a gradient."""
        return cast(Tensor, _FrozenMatmul.apply(x, self))  # type: ignore[no-untyped-call]


class _FrozenMatmul(torch.autograd.Function):
    """``x W^T + b`` that keeps neither ``x`` nor ``W`` for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        dtype = layer.product_dtype or layer.compute_dtype
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), layer.weight_matrix(), bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return torch.matmul(grad.to(layer.compute_dtype), layer.weight_matrix()).to(grad.dtype), None


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind ``tensors``."""
    return sum({s._cdata: int(s.nbytes()) for s in (t.untyped_storage() for t in tensors)}.values())


class QuantizerBackend(ABC):
    """Packs weights into one family of storage formats.

    A new backend defines ``pack`` and ``layer`` (or ``build``), and ``empty_state`` where ``pack`` can't run on the
    meta device: see ``docs/research/quantiser.md``. GPTQ chooses codes of a ``LevelBackend`` and of a ``RingBackend``.
    """

    layer: ClassVar[type[PackedLinear]]
    VERSION: ClassVar[int] = 1
    """Goes up with every change of the packed tensors that ``pack``, ``recoded`` or ``compensated`` give for a weight:
    results on disk are kept by it."""

    @abstractmethod
    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        """Return the packed tensors, on ``device``, of a weight matrix ``out x in`` of any floating type."""

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> PackedLinear:
        """Return the layer over packed tensors (shared, not copied), on their device; ``shape`` is (out, in)."""
        layer = self.layer(shape[1], shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(state["codes"], requires_grad=False)
        layer.others = {name: tensor for name, tensor in state.items() if name != "codes"}
        layer.fmt, layer.compute_dtype, layer.bias = fmt, compute_dtype, frozen(bias)
        vars(layer)["tables"] = self.tables(fmt, state["codes"].device)  # counted as the layer's
        return layer

    def tables(self, fmt: StorageFormat, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tables that all layers of a format on a device share, such as the values of its codes.

        ``build`` calls it once a layer, with the device of the codes (the meta device too), so that no table is made
        while weights are unpacked. Shapes and types are the backend's own: its ``unpack`` alone reads them, from the
        same cached function, as a layer may have moved since. The tensors lie on ``device`` and are the same objects at
        every call. Traces count them as the layer's. Empty: there are none, or they count as scratch of unpacking.
        """
        return ()

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        """Return meta tensors like those that ``pack`` gives for a matrix of ``shape`` (out, in) and ``dtype``."""
        return self.pack(torch.empty(shape, dtype=dtype, device="meta"), fmt, torch.device("meta"))


class LevelBackend(QuantizerBackend):
    """A backend in which the code of every weight is free: the index of one of the levels of a grid."""

    def pack_for_inputs(self, weight: Tensor, fmt: StorageFormat, device: torch.device, importance: Tensor) -> State:
        """Return packed tensors like those of ``pack``, with scales for inputs of which an error of their weights
        counts by ``importance`` (``in``, positive, on ``device``), where a backend searches for scales."""
        return self.pack(weight, fmt, device)

    @abstractmethod
    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        """Return the values that codes can take with the scales of ``state``."""

    @abstractmethod
    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        """Return ``state`` with other codes (``out x in``, indices of the grid's levels) and the same scales."""


class RingBackend(QuantizerBackend):
    """A backend whose codes depend on each other: it chooses those of whole inputs of a weight at a time."""

    @abstractmethod
    def inputs(self, moments: Tensor) -> Inputs:
        """Return the second moments of inputs (``in x in``, left as they are) as the backend rotates them, factored."""

    @abstractmethod
    def compensated(self, weight: Tensor, fmt: StorageFormat, inputs: Inputs) -> State:
        """Return the packed tensors of a weight (``out x in``) with codes chosen by GPTQ; ``inputs`` are what
        the method of this name returns."""


def frozen(tensor: Tensor | None) -> nn.Parameter | None:
    """Return a parameter that is never trained, or ``None``."""
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)


def pack_for(weight: Tensor, fmt: StorageFormat, compute_dtype: torch.dtype, device: torch.device) -> State:
    """Return the packed tensors of a weight (``out x in``) for products in ``compute_dtype``.

    A weight of 16 bits that stays in 16 bits is converted to a compute type of 16 bits, so that nothing has to be
    unpacked, and else stays as and where it is: a second copy of a base on the host would only take memory.
    """
    if fmt.bits == 16 and weight.dtype in HALF:
        return {"codes": weight.to(compute_dtype) if compute_dtype in HALF else weight}
    return backend_of(fmt).pack(weight, fmt, device)


@cache
def backend_of(fmt: StorageFormat) -> QuantizerBackend:
    """Return the backend that stores ``fmt``; its module is imported now."""
    backend: QuantizerBackend = pkgutil.resolve_name(known_backend(fmt).packs)()
    return backend


class HalfLinear(PackedLinear):
    """A frozen ``nn.Linear`` stored in 16 bits."""

    def unpack(self) -> Tensor:
        return self.weight.data.to(self.compute_dtype)


class UnquantisedBackend(QuantizerBackend):
    """Weights that have 16 bits keep their type; others become fp16, the type closest to them."""

    layer = HalfLinear

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        half = weight.to(device, weight.dtype if weight.dtype in HALF else torch.float16).contiguous()
        whole = half.untyped_storage().nbytes() == half.numel() * half.element_size()
        return {"codes": half if whole else half.clone()}
