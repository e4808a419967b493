"""Operations of a format's unpacking and of an adapted linear: each is at least one kernel launch on a GPU.

The counts are of today's code on the meta device, where one tile of a weight stands for all; one that grows makes small
batches slower.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qra_bo.finetune.adapters.lora import fused_linear
from qra_bo.finetune.quantization.base import packed, stand_in
from qra_bo.memory.formats import FORMATS, has_zeros, parse_format, planes_of

META, CUDA = torch.device("meta"), torch.device("cuda")
SHAPE = (1024, 2048)
LIBRARY = {"nf4": 3, "nf4-nodq": 1, "int8": 2, "fp16": 0}
"""Most launches of unpacking what other libraries unpack, or nothing does."""
SCALED, FIELD, JOIN, ZEROS = 5, 2, 2, 1
"""Launches of unpacking planes: making a tile of weights from codes; then those of a plane whose words hold several
fields, of every plane after the first, and of zeros that a format stores."""
STEP = 12
"""Most launches of a linear's forward and backward pass beside unpacking its weight twice."""
VIEWS = ("view", "slice", "select", "unsqueeze", "expand", "detach", "t.", "alias", "as_strided", "transpose", "empty",
         "reshape", "split", "squeeze", "permute")


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of operations that are no views and no allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.seen.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        name = func.__name__
        if not name.startswith(VIEWS):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def most_launches(name: str) -> int:
    """Return the most launches of unpacking one tile of a format."""
    fmt = FORMATS[name]
    planes = planes_of(fmt)
    if not planes:
        return LIBRARY[name]
    zeros = fmt.backend == "hqq" or has_zeros(fmt)
    return SCALED + FIELD * sum(p.per_word > 1 for p in planes) + JOIN * (len(planes) - 1) + ZEROS * zeros


def layer_of(fmt: str) -> Any:
    return packed(stand_in(parse_format(fmt), SHAPE, False, torch.bfloat16, CUDA))


@pytest.mark.parametrize("fmt", FORMATS)
def test_unpacking_launches_no_more_than_today(fmt: str) -> None:
    layer = layer_of(fmt)
    with Launches() as launches:
        layer.unpack()
    assert launches.count <= most_launches(fmt), dict(launches.seen)


@pytest.mark.parametrize("fmt", ["nf4", "fp16"])
def test_adapted_linear_adds_few_launches_to_unpacking(fmt: str) -> None:
    layer = layer_of(fmt)
    down, up = (torch.nn.Parameter(torch.empty(*size, dtype=torch.bfloat16, device=META))
                for size in ((4, SHAPE[1]), (SHAPE[0], 4)))
    x = torch.empty(2, 16, SHAPE[1], dtype=torch.bfloat16, device=META, requires_grad=True)
    with Launches() as launches:
        fused_linear(x, down, up, layer, 2.0).sum().backward()
    assert launches.count <= 2 * most_launches(fmt) + STEP, dict(launches.seen)
