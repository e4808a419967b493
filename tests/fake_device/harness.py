"""The whole of a search's device code on fake tensors of a device that is no CPU.

Run in a process of its own: ``python -m tests.fake_device.harness``. A device named ``fakegpu`` takes the place of
CUDA (autograd on fake CUDA tensors aborts in a CPU build of torch). Fake tensors have shapes, types and devices and no
numbers, so that every mismatch of devices or types raises as on a GPU, and data-dependent answers are made up.
"""

import torch
from torch.utils import backend_registration


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_rng_state(self, device: object) -> torch.Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: object) -> None:
        return None

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


backend_registration._setup_privateuseone_for_python_backend("fakegpu", backend_module=Module())

from collections.abc import Iterator  # noqa: E402
from contextlib import ExitStack, contextmanager  # noqa: E402
from typing import Any  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from qra_bo.finetune.quantization import moments as moments_module  # noqa: E402

DEVICE = torch.device("fakegpu")
HOST_WIDTH = 64
"""Inputs of a linear above which its second moments are factored on the host."""


ATEN = torch.ops.aten
ONE_TYPE = {ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.mv, ATEN.addmv, ATEN.dot, ATEN.index_add,
            ATEN.index_add_, ATEN.scatter_add, ATEN.scatter_add_}
"""Operators whose kernels refuse floating-point tensors of several types, and whose fake ones do not."""


class FakeDevice(FakeTensorMode):
    """Fake tensors with answers to what depends on numbers: a scalar is 1, a mask is all true."""

    def dispatch(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "overloadpacket", None) in ONE_TYPE:
            tensors = (t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor))
            found = {t.dtype for t in tensors if t.is_floating_point()}
            if len(found) > 1:
                raise TypeError(f"{func} is given tensors of several types: {sorted(map(str, found))}")
        if func is ATEN._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is ATEN.nonzero.default:
            with self:
                return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.int64, device=args[0].device)
        if func is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            (mask,) = args[1]
            with self:
                chosen = torch.zeros(mask.numel(), dtype=torch.int64, device=mask.device)
                return args[0].reshape(mask.numel(), *args[0].shape[mask.ndim:])[chosen]
        return super().dispatch(func, types, args, kwargs)


def apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Replace every parameter and buffer, as ``Module._apply`` does, which swaps fake ones and can't."""
    made = vars(fn).setdefault("made", {})
    for child in module.children() if recurse else ():
        child._apply(fn)
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            if id(parameter) not in made:  # tied weights stay tied
                made[id(parameter)] = parameter, nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
            module._parameters[name] = made[id(parameter)][1]
    for name, buffer in list(module._buffers.items()):
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


TENSOR = torch.tensor


def made_on_host(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
    """Make a tensor on the host first: ``torch.tensor`` does not reach the fake mode with another device."""
    made = TENSOR(data, dtype=dtype, **options)
    return made if device is None else torch.empty(made.shape, dtype=made.dtype, device=device)


FACTORED = moments_module._factored


def factored(moments: Tensor, by_moment: bool) -> tuple[Tensor, Tensor, bool]:
    """Factor moments, and answer that wide ones have no factor on the device, so that they are factored on the host."""
    order, factor, _ = FACTORED(moments, by_moment)
    return order, factor, moments.device == DEVICE and len(order) > HOST_WIDTH


@contextmanager
def fake_device() -> Iterator[None]:
    """Make all tensors fake within the block."""
    with ExitStack() as stack:
        for owner, name, shim in ((Tensor, "numpy", lambda self, **_: np.zeros(tuple(self.shape))),
                                  (nn.Module, "_apply", apply), (torch, "tensor", made_on_host),
                                  (moments_module, "_factored", factored)):
            stack.enter_context(mock.patch.object(owner, name, shim))
        stack.enter_context(FakeDevice(allow_non_fake_inputs=True))
        yield
