"""Integer grids that other tools load as they are: ``(q - z) * s`` with codes ``q`` of 2 to 8 bits.

In the ``sym`` formats ``z`` is the middle code, ``2^(bits - 1)``, and ``s`` may be negative: there is one level more on
the side of the negative codes, which should be that of the largest weight. In the ``int`` formats ``z`` is an integer
among the codes, and ``s`` is positive. A group is a run of columns of one row.

Scales are values of both bf16 and fp16: at most 8 significant bits, within fp16's normal range. ``q - z`` has at most 8
bits, so that the product is exact in fp32 and is rounded once, to the compute type; a consumer that computes it in bf16
or fp16 gets the same weight.
"""

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import State, tile_numel
from qra_bo.finetune.quantization.grouped import GroupedBackend
from qra_bo.finetune.quantization.integer_scales import search
from qra_bo.memory.file_formats import ORDERED
from qra_bo.memory.formats import has_zeros
from qra_bo.space.space import StorageFormat


class IntegerBackend(GroupedBackend):
    """Integer storage; scales (and zeros) are those of the least squared error on a grid of candidates."""

    name, by_row = "integer", True
    VERSION = 2
    metadata_types = torch.bfloat16, torch.uint8

    def has_zeros(self, fmt: StorageFormat) -> bool:
        return has_zeros(fmt)

    def run_numel(self, device: torch.device) -> int:
        return tile_numel(device)

    def pack_for_inputs(self, weight: Tensor, fmt: StorageFormat, device: torch.device, importance: Tensor) -> State:
        return self.pack(weight, fmt, device, importance)

    def solve(self, groups: Tensor, fmt: StorageFormat, roots: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return search(groups, fmt.bits, not has_zeros(fmt), roots)


class OrderedBackend(IntegerBackend):
    """``int`` storage whose groups are of columns in any order, as in a file: ``columns`` (``in``) is the place of each
    column among those that lie group by group; what is packed here needs none."""

    name = ORDERED

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        columns = torch.empty(shape[1], dtype=torch.int32, device="meta")
        return {**super().empty_state(fmt, shape, dtype), "columns": columns}
