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
from qra_bo.memory.formats import FORMATS, parse_format

META, CUDA = torch.device("meta"), torch.device("cuda")
SHAPE = (1024, 2048)
UNPACK = {"nf4": 3, "nf4-nodq": 1, "int8": 2, "fp16": 0,
          "hqq2": 8, "hqq3": 8, "hqq4": 8, "hqq5": 12, "hqq6": 12, "hqq8": 6,
          "sym2": 7, "sym3": 11, "sym4": 7, "sym5": 11, "sym6": 11, "sym8": 5,
          "int2": 8, "int3": 12, "int4": 8, **dict.fromkeys(("int8-g32", "int8-g64", "int8-g128"), 6)}
"""Most launches of unpacking; formats of another group size launch as many, the dense references 13."""
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


def layer_of(fmt: str) -> Any:
    return packed(stand_in(parse_format(fmt), SHAPE, False, torch.bfloat16, CUDA))


@pytest.mark.parametrize("fmt", FORMATS)
def test_unpacking_launches_no_more_than_today(fmt: str) -> None:
    layer = layer_of(fmt)
    with Launches() as launches:
        layer.unpack()
    most = 13 if fmt.startswith("ref") else UNPACK.get(fmt, UNPACK[fmt.partition("-")[0]])
    assert launches.count <= most, dict(launches.seen)


@pytest.mark.parametrize("fmt", ["nf4", "fp16"])
def test_adapted_linear_adds_few_launches_to_unpacking(fmt: str) -> None:
    layer = layer_of(fmt)
    down, up = (torch.nn.Parameter(torch.empty(*size, dtype=torch.bfloat16, device=META))
                for size in ((4, SHAPE[1]), (SHAPE[0], 4)))
    x = torch.empty(2, 16, SHAPE[1], dtype=torch.bfloat16, device=META, requires_grad=True)
    with Launches() as launches:
        fused_linear(x, down, up, layer, 2.0).sum().backward()
    assert launches.count <= 2 * UNPACK[fmt] + STEP, dict(launches.seen)
