"""The optimiser of a traced step: torch's own on meta tensors, and replacements for the kernels of bitsandbytes.

These kernels can't run without numbers. Their states are made by the library itself, in its sizes; an update allocates
and frees the tensors of the real one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.optimizers import LEAST_PAGED, is_paged

META = torch.device("meta")
Groups = Sequence[tuple[dict[str, Parameter], float]]


def traced_optimizer(groups: Groups, kind: str, target: torch.device) -> UnitwiseAdamW:
    """Return an optimiser of ``memory.optimizers.OPTIMIZERS`` after its first step, over meta parameters.

    Args:
        groups: As for ``UnitwiseAdamW``.
        kind: Its name.
        target: The device that is traced.
    """
    optimizer = UnitwiseAdamW(groups, AdamWSettings(kind=kind))
    if kind == "adamw":
        _with_moments(optimizer, groups)
        return optimizer
    paged = is_paged(kind) and target.type == "cuda"
    for _, _, inner in optimizer.groups:
        vars(inner)["get_state_buffer"] = partial(_buffer, paged)
        vars(inner)["step"] = partial(_step, inner, target)
        group = inner.param_groups[0]
        for index, parameter in enumerate(group["params"]):
            inner.init_state(group, parameter, 0, index)  # type: ignore[attr-defined]
    return optimizer


def on_device(optimizer: UnitwiseAdamW) -> list[Tensor]:
    """Return the tensors that an optimiser keeps on the device between steps: all but pages."""
    return [t for t in optimizer.tensors() if not getattr(t, "is_paged", False)]


def _with_moments(optimizer: UnitwiseAdamW, groups: Groups) -> None:
    state: dict[str, Tensor] = {}
    for named, _ in groups:
        for name, parameter in named.items():
            fp32 = torch.empty(parameter.shape, dtype=torch.float32, device=META)
            state.update({f"{name}|{key}": fp32 for key in ("master", "exp_avg", "exp_avg_sq")})
            state[f"{name}|step"] = torch.empty((), dtype=torch.float32, device=META)
    optimizer.load_state(state)
    for _, _, inner in optimizer.groups:  # the check of devices does not know the meta device
        vars(inner)["_need_device_dtype_check_for_fused"] = False


def _buffer(paged: bool, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a moment; a paged one carries the library's mark."""
    buffer = torch.empty(parameter.shape, dtype=dtype, device=META)
    if paged and parameter.numel() >= LEAST_PAGED:
        buffer.is_paged = True  # type: ignore[attr-defined]
    return buffer


def _step(inner: Any, target: torch.device) -> None:
    """Update every parameter that has a gradient; pages stay on the device until the end."""
    pages = []
    for parameter in inner.param_groups[0]["params"]:
        state = inner.state[parameter]
        for moment in (state["state1"], state["state2"]):
            if getattr(moment, "is_paged", False):
                pages.append(torch.empty(moment.shape, dtype=moment.dtype, device=META))
        if target.type == "cpu":
            count = 5 if state["state1"].dtype == torch.uint8 else 3  # see memory.optimizers.update_bytes
            del [torch.empty(parameter.shape, device=META) for _ in range(count)][:]
