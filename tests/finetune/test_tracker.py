"""The tracker on programs whose live bytes can be counted by hand."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qra_bo.finetune.memory_probe import PeakTracker, module_tensors
from qra_bo.finetune.quantization.base import storage_bytes


def measure_peak(program: Callable[[], object], held: Iterable[Tensor] = ()) -> int:
    """Peak live bytes while ``program`` runs, ``held`` (alive before it starts) included."""
    with PeakTracker() as tracker:
        tracker.track(held)
        program()
    return tracker.peak_bytes


def test_peak_of_a_chain_is_two_tensors() -> None:
    x = torch.zeros(256)

    def chain() -> None:
        y = x + 1  # 1 KiB
        for _ in range(5):
            y = y * 2  # the new one beside the old one

    assert measure_peak(chain, [x]) == 3 * 1024
    assert measure_peak(chain) == 2 * 1024  # what was there before is counted only when it is named


def test_views_and_in_place_results_cost_nothing() -> None:
    def program() -> None:
        x = torch.zeros(1024, dtype=torch.uint8)
        x.view(32, 32).t()[4:].add_(1)

    assert measure_peak(program) == 1024


def test_backward_frees_what_forward_saved() -> None:
    w = torch.ones(64, requires_grad=True)  # 256 bytes
    with PeakTracker() as tracker:
        tracker.track([w])
        loss = (w.exp() * 2).sum()
        saved = tracker.live_bytes
        assert saved == 256 + 256 + 4  # w, exp(w), the loss
        loss.backward()
        assert tracker.live_bytes == 256 + 256 + 4  # w, its gradient, the loss
    assert w.grad is not None


def test_works_without_real_memory() -> None:
    def program() -> None:
        x = torch.empty(1 << 20, 1 << 10)  # 4 GiB
        x.add(1)

    with FakeTensorMode():
        assert measure_peak(program) == 2 * 2**32
    with torch.device("meta"):
        assert measure_peak(program) == 2 * 2**32


def test_live_bytes_of_a_model_count_shared_storages_once() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    assert storage_bytes(module_tensors(model)) == 2 * 160
    model[1].weight = model[0].weight
    assert storage_bytes(module_tensors(model)) == 160
    assert len(module_tensors(model)) == 1
    model.register_buffer("extra", torch.zeros(3))
    model.plain = torch.zeros(5)  # a tensor in an attribute, as some quantised layers keep
    assert storage_bytes(module_tensors(model)) == 160 + 12 + 20
    with PeakTracker() as tracker:
        for _ in range(2):  # counted once
            tracker.track_existing(model)
            assert tracker.live_bytes == 192
