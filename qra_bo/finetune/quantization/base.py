"""What every quantiser backend offers, and the frozen linear layer that all of them build.

Every packed layer computes ``y = x W^T + b`` with one dense ``W`` of the compute type: unpacked in the forward,
dropped, and unpacked again in the backward, so that nothing dense is alive between the two. Training and evaluation
see the same ``W`` on every device. That sets aside two paths of bitsandbytes: LLM.int8's quantised activations
(used outside training on a CPU, always on CUDA), which would make the loss that a search sees differ from the loss
that it trains, and the repacking of ``Linear4bit`` in place in eval mode on CPUs with avx512_bf16.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qra_bo.finetune.quantization.grid import Grid
from qra_bo.memory.formats import check_shape
from qra_bo.space.formats import StorageFormat
from qra_bo.utils.errors import ConfigError, DeviceError

State = dict[str, Tensor]
"""Packed tensors of one weight matrix by name: all that is needed, with format and shape, to build its layer."""
CODES, LOWER_CODES = "codes", "lower_codes"
"""Names in a state of packed codes, and of the plane of their lower bits where there are two; the rest is metadata."""


def tile_numel(device: torch.device) -> int:
    """Weights unpacked at a time: the fp32 scratch stays in a CPU's cache, and small beside a GPU's memory."""
    return 1 << 18 if device.type == "cpu" else 1 << 22


class PackedLinear(ABC):
    """A frozen linear layer over packed weights (mixed into ``nn.Module`` classes, before them).

    Attributes:
        fmt: Storage format.
        compute_dtype: Type of the matrix product; input and output keep the type of the input.
        dense: The unpacked weight, kept only where memory is traded for time; same numbers, bit for bit.
    """

    fmt: StorageFormat
    compute_dtype: torch.dtype
    dense: Tensor | None = None
    in_features: int
    out_features: int
    bias: Any

    @abstractmethod
    def codes(self) -> State:
        """The packed codes, by name."""

    @abstractmethod
    def metadata(self) -> State:
        """Scales, zeros and offsets, by name."""

    @abstractmethod
    def unpack(self) -> Tensor:
        """The dequantised weight, ``out x in`` in the compute type."""

    def weight_matrix(self) -> Tensor:
        """The weight of the product, ``out x in`` in the compute type."""
        return self.unpack() if self.dense is None else self.dense

    def forward(self, x: Tensor) -> Tensor:
        """``... x in`` to ``... x out``; the gradient reaches ``x`` and nothing else."""
        return cast(Tensor, _FrozenMatmul.apply(x, self))  # type: ignore[no-untyped-call]


class _FrozenMatmul(torch.autograd.Function):
    """``x W^T + b`` that keeps neither ``x`` nor ``W`` for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(layer.compute_dtype)
        return nn.functional.linear(x.to(layer.compute_dtype), layer.weight_matrix(), bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return torch.matmul(grad.to(layer.compute_dtype), layer.weight_matrix()).to(grad.dtype), None


def packed(module: nn.Module) -> PackedLinear:
    """``module`` as a packed layer.

    Raises:
        ConfigError: If it is not one.
    """
    if not isinstance(module, PackedLinear):
        raise ConfigError(f"a layer built by a quantiser backend was expected; got {type(module).__name__}")
    return module


def on_device(tensor: Tensor, device: torch.device) -> bool:
    """Whether ``tensor`` is on ``device``; a device without an index means any of its type."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def storage_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}.values())


class QuantizerBackend(ABC):
    """Packs weights into one family of storage formats.

    A new backend writes ``pack`` and ``build`` and joins ``tests/conformance/quantizer.py`` by one line.
    """

    name: str
    supported_bits: tuple[int, ...]
    needs_cuda: bool = False

    @abstractmethod
    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        """Packed tensors on ``device`` of a weight matrix ``out x in`` of any floating type."""

    @abstractmethod
    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        """The layer over packed tensors (shared, not copied), on their device; ``shape`` is (out, in)."""

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid | None:
        """What codes could mean with the scales of ``state``; ``None`` where no code is free."""
        return None

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        """``state`` with other codes (``out x in``, places in the grid's levels), its scales as they are.

        Raises:
            ConfigError: If no code is free.
        """
        raise ConfigError(f"the backend {self.name!r} has no codes to choose in the format {fmt.name!r}")

    def check(self, fmt: StorageFormat, out_features: int, in_features: int, device: torch.device) -> None:
        """Refuse what this backend can't store.

        Raises:
            ConfigError: If the format is not of this backend.
            SpaceError: If it can't pack a matrix of this shape.
            DeviceError: If it needs CUDA and ``device`` is another.
        """
        if fmt.backend != self.name or fmt.bits not in self.supported_bits:
            raise ConfigError(f"the backend {self.name!r} stores {list(self.supported_bits)} bits; got the format "
                              f"{fmt.name!r} of {fmt.bits} bits, which belongs to {fmt.backend!r}")
        if self.needs_cuda and device.type != "cuda":
            raise DeviceError(f"the backend {self.name!r} needs CUDA; got the device {device}: choose another backend "
                              f"for {fmt.bits} bits")
        check_shape(fmt, out_features, in_features)

    def quantize(self, linear: nn.Linear, fmt: StorageFormat, compute_dtype: torch.dtype,
                 device: torch.device) -> nn.Module:
        """A frozen packed layer in place of ``linear``, which is left as it is.

        Raises:
            ConfigError: If the format is not of this backend.
            SpaceError: If it can't pack a matrix of this shape.
            DeviceError: If it needs CUDA and ``device`` is another.
        """
        self.check(fmt, linear.out_features, linear.in_features, device)
        state = self.pack(linear.weight.detach(), fmt, device)
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        return self.build(state, fmt, (linear.out_features, linear.in_features), bias, compute_dtype)

    def dequantize(self, module: nn.Module) -> Tensor:
        """The weight of a packed layer, ``out x in`` in its compute type."""
        return packed(module).unpack()

    def stored_bytes(self, module: nn.Module) -> tuple[int, int]:
        """Bytes of codes and of metadata, measured on the real storages."""
        layer = packed(module)
        return storage_bytes(layer.codes()), storage_bytes(layer.metadata())

    def state(self, module: nn.Module) -> State:
        """Packed tensors of a layer, fit for safetensors and for ``build``."""
        layer = packed(module)
        return {**layer.codes(), **layer.metadata()}

    def to(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The same layer on ``device``; ``module`` itself if it is there already."""
        state = self.state(module)
        if all(on_device(t, device) for t in state.values()):
            return module
        layer = packed(module)
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        return self.build({k: t.to(device) for k, t in state.items()}, layer.fmt,
                          (layer.out_features, layer.in_features), bias, layer.compute_dtype)


def frozen(tensor: Tensor | None) -> nn.Parameter | None:
    """A parameter that is never trained, or ``None``."""
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)
