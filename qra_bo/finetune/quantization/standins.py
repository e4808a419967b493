"""Stand-ins for packed linears on the meta device: the storages of the real layers, and no numbers.

The libraries' layers can't be built without weights. A stand-in holds meta tensors of exactly the bytes that the real
layer stores, and its ``unpack`` makes and drops tensors of exactly the sizes and in the order of the real one, so that
whoever follows storages sees the same stored bytes and the same peak. Where the real layer loops over tiles, one
iteration stands for all: none of them holds more.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import PackedLinear, State, frozen, tile_numel
from qra_bo.finetune.quantization.reference import ReferenceLinear
from qra_bo.finetune.quantization.unquantised import HalfLinear
from qra_bo.memory.formats import HQQ_PLANES, check_shape, metadata_bytes, weight_bytes
from qra_bo.space.formats import StorageFormat

META = torch.device("meta")
Shape = tuple[int, int]


class StandIn(PackedLinear, nn.Module):
    """A layer of a library over meta tensors; ``target`` is the device whose tiles are used."""

    def __init__(self, codes: State, metadata: State, target: torch.device) -> None:
        super().__init__()
        self.target, self.code_tensors, self.metadata_tensors = target, codes, metadata

    def codes(self) -> State:
        return self.code_tensors

    def metadata(self) -> State:
        return self.metadata_tensors


class StandInNF4(StandIn):
    """NF4 of bitsandbytes, with or without double quantisation."""

    def __init__(self, fmt: StorageFormat, shape: Shape, target: torch.device) -> None:
        blocks = -(-shape[0] * shape[1] // fmt.block)
        metadata = {"absmax": torch.empty(blocks, device=META)}
        if fmt.double_quant:
            second = (metadata_bytes(fmt, *shape) - blocks - 4) // 4
            metadata = {"absmax": torch.empty(blocks, dtype=torch.uint8, device=META),
                        "nested_absmax": torch.empty(second, device=META), "offset": torch.empty((), device=META)}
        codes = {"codes": torch.empty(weight_bytes(fmt, *shape), 1, dtype=torch.uint8, device=META)}
        super().__init__(codes, metadata, target)

    def unpack(self) -> Tensor:
        absmax = self.metadata_tensors["absmax"]
        if self.fmt.double_quant:
            absmax = torch.empty(absmax.shape, device=META).add_(self.metadata_tensors["offset"])
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=META)


class StandInInt8(StandIn):
    """The weights of LLM.int8."""

    def __init__(self, fmt: StorageFormat, shape: Shape, target: torch.device) -> None:
        super().__init__({"codes": torch.empty(shape, dtype=torch.int8, device=META)},
                         {"scale": torch.empty(shape[0], device=META)}, target)

    def unpack(self) -> Tensor:
        codes, scale = self.code_tensors["codes"], self.metadata_tensors["scale"].unsqueeze(1).mul(1.0 / 127.0)
        out = torch.empty(codes.shape, dtype=self.compute_dtype, device=META)
        if self.target.type != "cpu":
            return out  # one kernel writes the product where it belongs
        rows = min(max(1, tile_numel(self.target) // self.in_features), self.out_features)
        scratch = torch.empty(rows, self.in_features, device=META)
        out[:rows] = scratch.copy_(codes[:rows]).mul_(scale[:rows])
        return out


class StandInHQQ(StandIn):
    """HQQ's groups along the columns."""

    def __init__(self, fmt: StorageFormat, shape: Shape, target: torch.device) -> None:
        groups = shape[0] * shape[1] // fmt.block
        codes = {str(i): torch.empty(plane.words(groups), fmt.block, device=META,
                                     dtype=torch.uint8 if plane.word_bytes == 1 else torch.int32)
                 for i, plane in enumerate(HQQ_PLANES[fmt.bits])}
        metadata = {key: torch.empty(groups, 1, dtype=torch.float16, device=META) for key in ("scale", "zero")}
        super().__init__(codes, metadata, target)

    def unpack(self) -> Tensor:
        words, (scale, zero) = tuple(self.code_tensors.values()), self.metadata_tensors.values()
        planes, group = HQQ_PLANES[self.fmt.bits], self.fmt.block
        out = torch.empty(len(scale), group, dtype=self.compute_dtype, device=META)
        step = min(max(1, tile_numel(self.target) // group), len(words[-1]))
        direct = self.compute_dtype == torch.float32
        scratch = out if direct else torch.empty(step, group, device=META)
        fields = [part[:step] if plane.per_word == 1 else (part[:step] >> plane.bits) & 1
                  for part, plane in zip(words, planes, strict=True)]
        if len(fields) > 1:
            fields[0].bitwise_left_shift_(1).bitwise_or_(fields.pop())
        tile = out[:step] if direct else scratch
        tile.copy_(fields[0]).sub_(zero[:step].float()).mul_(scale[:step].float())
        return out.view(self.out_features, self.in_features)


def stand_in(fmt: StorageFormat, shape: Shape, bias: bool, compute_dtype: torch.dtype,
             target: torch.device) -> Any:
    """A frozen layer over meta tensors with the storages of the real one.

    Args:
        fmt: Storage format.
        shape: ``(out, in)``.
        bias: Whether the layer has a bias (in the compute type).
        compute_dtype: Type of the matrix product.
        target: The device that is stood in for.

    Raises:
        SpaceError: If the format can't store a matrix of this shape.
    """
    check_shape(fmt, *shape)
    layer = _layer(fmt, shape, compute_dtype, target)
    layer.fmt, layer.compute_dtype = fmt, compute_dtype
    layer.out_features, layer.in_features = shape
    layer.bias = frozen(torch.empty(shape[0], dtype=compute_dtype, device=META) if bias else None)
    return layer


def _layer(fmt: StorageFormat, shape: Shape, compute_dtype: torch.dtype, target: torch.device) -> Any:
    if fmt.backend == "hqq":
        return StandInHQQ(fmt, shape, target)
    if fmt.backend == "bitsandbytes":
        return (StandInInt8 if fmt.bits == 8 else StandInNF4)(fmt, shape, target)
    # The plain-torch layers have no kernels of a library: they run as they are.
    if fmt.backend == "none":
        half = torch.float16 if compute_dtype == torch.float32 else compute_dtype
        layer = HalfLinear(shape[1], shape[0], bias=False, device=META)
        layer.weight = nn.Parameter(torch.empty(shape, dtype=half, device=META), requires_grad=False)
        return layer
    packed = ReferenceLinear(shape[1], shape[0], bias=False, device=META)
    codes = torch.empty(weight_bytes(fmt, *shape), dtype=torch.uint8, device=META)
    packed.weight = nn.Parameter(codes, requires_grad=False)
    groups = shape[0] * shape[1] // fmt.block
    packed.scale, packed.minimum = (torch.empty(groups, 1, dtype=torch.float16, device=META) for _ in range(2))
    return packed
