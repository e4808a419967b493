"""HQQ: scales and zeros of groups by its alternation between codes and zeros, kept in fp16 whatever the compute type.

Codes of 5 and 6 bits, for which the library has no packing, are two planes: the upper 4 bits and the lower 1 or 2. On a
CPU the library's algorithm is applied to runs of groups. (Its stopping rule then looks at the mean error of a run
instead of the whole matrix.)
"""

import warnings

import torch
from torch import Tensor

from qra_bo.finetune.quantization.grouped import GroupedBackend
from qra_bo.space.space import StorageFormat

with warnings.catch_warnings():  # hqq decorates with torch.compile, whose own imports use old TorchScript
    warnings.filterwarnings("ignore", message=r"`?torch\.jit\.script.*", category=DeprecationWarning)
    from hqq.core.quantize import Quantizer


class HQQBackend(GroupedBackend):
    """HQQ storage, grouped along the columns (the library's axis 1)."""

    by_row = False
    metadata_types = torch.float16, torch.float16

    def solve(self, groups: Tensor, fmt: StorageFormat, roots: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        codes, meta = Quantizer.quantize(groups, nbits=fmt.bits, group_size=fmt.block, axis=1, bitpack=False,
                                         device=str(groups.device))
        return codes, meta["scale"], meta["zero"]
