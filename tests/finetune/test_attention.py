"""Attention kernels: which one a device and a type get, and what it is given. No GPU is needed: tensors are fake."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from qra_bo.finetune.models import load
from qra_bo.finetune.models.load import use_fast_attention
from tests.finetune.models import tiny_llama

ATTENTION = torch.nn.functional.scaled_dot_product_attention


@pytest.mark.parametrize(("device", "wide"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_the_kernel_of_a_cpu_computes_in_fp32_on_a_cpu_alone(device: str, wide: torch.dtype,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def kernel(_module: object, *given: Tensor) -> tuple[Tensor, None]:
        seen.extend(tensor.dtype for tensor in given)
        return given[0], None

    monkeypatch.setattr(load, "sdpa_attention_forward", kernel)
    with FakeTensorMode():
        query, key, value = (torch.empty(1, 4, 6, 8, dtype=torch.bfloat16, device=device) for _ in range(3))
        mask = torch.empty(1, 1, 6, 6, device=device)
        out, _ = load.fp32_attention(torch.nn.Module(), query, key, value, mask)
    assert seen == [wide] * 4
    assert out.dtype is torch.bfloat16


class Watch(TorchFunctionMode):
    """Notes the heads of queries and of keys of every attention, and whether groups are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int, bool]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is ATTENTION:
            self.seen.add((args[0].shape[1], args[1].shape[1], (kwargs or {}).get("enable_gqa", False)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "capability", "groups"), [
    (torch.float16, (7, 5), False), (torch.float16, (8, 0), True), (torch.bfloat16, (9, 0), True),
    (torch.float32, (9, 0), False)])
def test_cuda_gets_groups_where_a_fused_kernel_takes_them(dtype: torch.dtype, capability: tuple[int, int], groups: bool,
                                                          padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    model, _ = tiny_llama(dtype=dtype)
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0 if padded else 1
    expected = model(input_ids=ids, attention_mask=mask).logits
    name = use_fast_attention(model, torch.device("cuda"), dtype)
    with Watch() as watch:
        found = model(input_ids=ids, attention_mask=mask).logits
    assert name == ("sdpa" if groups else "sdpa_ungrouped")
    assert watch.seen == {(4, 2, True) if groups and not padded else (4, 4, False)}
    torch.testing.assert_close(found, expected)
