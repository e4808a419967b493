"""Pages of paged optimisers: reused by the next trial, in a process of bitsandbytes that allocates on the host."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from qra_bo.finetune.training import pages
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.finetune.training.pages import Pages
from qra_bo.memory.optimizers import LEAST_PAGED


class Device(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


@pytest.fixture(name="allocated")
def managed_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every allocation of managed memory that was asked of the library."""
    import bitsandbytes.functional as library
    sizes: list[int] = []

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> Any:
        out: Any = torch.full(shape, 7, dtype=dtype)
        out.is_paged, out.page_deviceid = True, device.index
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(library, "get_paged", get_paged)
    monkeypatch.setattr(library, "fill", lambda tensor, value: tensor.fill_(value))
    monkeypatch.setattr(pages, "_POOL", [])
    return sizes


def moments(rows: int, dtype: torch.dtype) -> tuple[Pages, list[torch.Tensor]]:
    """Both moments of two parameters of ``rows x 1024``."""
    mine = Pages()
    parameters = [torch.empty(rows, 1024).as_subclass(Device) for _ in range(2)]
    return mine, [mine.state_buffer(p, dtype) for p in parameters for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_trials_reuse_the_pages_of_those_before(dtype: torch.dtype, allocated: list[int]) -> None:
    from bitsandbytes.functional import GlobalPageManager
    listed = len(GlobalPageManager.get_instance().paged_tensors)
    for _ in range(5):
        owner, buffers = moments(LEAST_PAGED // 1024 + 1, dtype)
        for i, buffer in enumerate(buffers):
            assert not buffer.any()
            assert buffer.dtype == dtype
            assert (buffer.is_paged, buffer.page_deviceid) == (True, 0)  # type: ignore[attr-defined]
            assert buffer.data_ptr() % 8 == 0
            buffer.fill_(i + 1)
        assert [int(b.max()) for b in buffers] == [int(b.min()) for b in buffers] == [1, 2, 3, 4]  # nothing overlaps
        del owner, buffers, buffer
    assert len(allocated) == 1
    assert len(GlobalPageManager.get_instance().paged_tensors) == listed


def test_a_living_optimiser_keeps_its_pages(allocated: list[int]) -> None:
    first, second = moments(200, torch.float32), moments(200, torch.float32)
    assert len(allocated) == 2
    assert {b.data_ptr() for b in first[1]}.isdisjoint(b.data_ptr() for b in second[1])


def test_small_moments_stay_on_the_device(allocated: list[int]) -> None:
    assert Pages().state_buffer(Parameter(torch.ones(10, 10))).sum() == 0
    assert allocated == []


def test_optimisers_of_many_trials_leave_nothing_in_the_librarys_list(allocated: list[int]) -> None:
    from bitsandbytes.functional import GlobalPageManager
    listed = len(GlobalPageManager.get_instance().paged_tensors)
    with FakeTensorMode():  # tensors without numbers, which a build for a CPU has on any device
        for _ in range(3):
            weights = {str(i): Parameter(torch.empty(LEAST_PAGED, dtype=torch.bfloat16, device="cuda"))
                       for i in range(2)}
            optimizer = UnitwiseAdamW([(weights, 1e-2)], AdamWSettings(kind="paged_adamw"))
            inner: Any = optimizer.groups[0][2]
            for index, (weight, _) in enumerate(optimizer.weights()):
                inner.init_state(inner.param_groups[0], weight.master, 0, index)
            assert all(state[key].is_paged for _, state in optimizer.weights() for key in ("state1", "state2"))
            del optimizer, inner, weights, weight, _
    assert len(GlobalPageManager.get_instance().paged_tensors) == listed
    assert len(allocated) == 1
