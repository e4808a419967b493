"""Attention kernels: which one a device and a type get, and what it is given. No GPU is needed: tensors are fake."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qra_bo.finetune.models import load


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
