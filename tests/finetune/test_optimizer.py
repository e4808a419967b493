
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.optimizers import LEAST_8BIT, OPTIMIZERS, shared_bytes, state_bytes


def _parameters(dtype: torch.dtype, rows: int = 4) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(rows, 3, generator=generator).to(dtype)) for _ in range(3)]


def test_equals_adamw_of_pytorch_with_two_groups_and_a_schedule() -> None:
    ours, theirs = _parameters(torch.float32), _parameters(torch.float32)
    settings = AdamWSettings(weight_decay=0.1, clip=0.5)
    optimizer = UnitwiseAdamW([({"a": ours[0], "b": ours[1]}, 1e-2), ({"c": ours[2]}, 3e-2)], settings)
    peer = torch.optim.AdamW([{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-2}],
                             betas=settings.betas, eps=settings.eps, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for factor in (0.5, 1.0, 0.25):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(4, 3, generator=generator)
            other.grad = mine.grad / 10
        for group, lr in zip(peer.param_groups, (1e-2, 3e-2), strict=True):
            group["lr"] = lr * factor
        expected = float(torch.nn.utils.clip_grad_norm_(theirs, 0.5))
        assert optimizer.step(factor, 0.1) == pytest.approx(expected, rel=1e-5)
        peer.step()
        assert all(p.grad is None for p in ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_gradients_are_added_up_by_unit_and_an_expert_may_have_none() -> None:
    a, b, c = _parameters(torch.bfloat16)
    optimizer = UnitwiseAdamW([({"mlp.experts.0.A": a, "mlp.experts.1.A": b}, 1e-2), ({"c": c}, 1e-2)], AdamWSettings())
    b.grad, c.grad = torch.full_like(b, 2.0), torch.ones_like(c)
    sizes: list[int] = []

    def add(flat: torch.Tensor) -> None:
        sizes.append(flat.numel())
        flat += 1

    optimizer.add_up(add)
    assert [float(p.grad.mean()) for p in (a, b, c) if p.grad is not None] == [1.0, 3.0, 2.0]
    assert sizes == [24, 12]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "rows"), [("adamw", 4), ("adamw_8bit", 4), ("adamw_8bit", 1500)])
def test_state_continues_bit_for_bit(kind: str, rows: int, dtype: torch.dtype) -> None:
    def run(steps: range, parameters: list[Parameter], optimizer: UnitwiseAdamW) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = torch.randn(rows, 3, generator=generator).to(dtype)
            optimizer.step(1.0, 1.0)

    def fresh() -> tuple[list[Parameter], UnitwiseAdamW]:
        p = _parameters(dtype, rows)
        return p, UnitwiseAdamW([({"a": p[0], "b": p[1]}, 1e-2), ({"c": p[2]}, 1e-3)], AdamWSettings(kind=kind))

    whole, optimizer = fresh()
    run(range(6), whole, optimizer)
    first, optimizer = fresh()
    run(range(3), first, optimizer)
    saved = optimizer.state()
    second, optimizer = fresh()
    optimizer.load_state(saved)
    run(range(3, 6), second, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_small_updates_are_not_lost_in_bf16() -> None:
    p = Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = UnitwiseAdamW([({"p": p}, 1e-4)], AdamWSettings())
    for _ in range(200):
        p.grad = torch.ones_like(p)
        optimizer.step(1.0, 1.0)
    assert float(p.detach()) == pytest.approx(1 - 200 * 1e-4, abs=4e-3)  # bf16 alone would stay at 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(4, 3), (63, 65), (64, 64), (64, 65), (400, 257)])
def test_states_have_the_predicted_bytes(kind: str, shape: tuple[int, int]) -> None:
    parameters = {name: Parameter(torch.zeros(shape)) for name in ("a", "b")}
    optimizer = UnitwiseAdamW([(parameters, 1e-3)], AdamWSettings(kind=kind))
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, 1.0)
    masters = {p.untyped_storage().data_ptr() for p in parameters.values()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in optimizer.tensors()}
    kept = sum(size for pointer, size in storages.items() if pointer not in masters)
    numel = np.array([shape[0] * shape[1]] * 2)
    tables = shared_bytes(kind) if numel[0] >= LEAST_8BIT else 0
    assert kept == state_bytes(kind, numel).sum() + tables


def test_moments_of_8_bits_follow_those_of_32() -> None:
    kinds: dict[str, Parameter] = {kind: Parameter(torch.ones(64, 65)) for kind in ("adamw", "adamw_8bit")}
    for kind, p in kinds.items():
        optimizer = UnitwiseAdamW([({"p": p}, 1e-2)], AdamWSettings(kind=kind, weight_decay=0.1))
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            p.grad = torch.randn(64, 65, generator=generator)
            optimizer.step(1.0, 1.0)
    wide, narrow = kinds["adamw"].detach(), kinds["adamw_8bit"].detach()
    assert 0 < float((narrow - wide).norm() / (wide - 1).norm()) < 0.1


def test_a_state_is_copied_to_the_host_alone() -> None:
    with FakeTensorMode():  # tensors without numbers, which a build for a CPU has on any device
        weights = {str(i): Parameter(torch.empty(1500, 3, dtype=torch.bfloat16, device="cuda")) for i in range(3)}
        optimizer = UnitwiseAdamW([(weights, 1e-2)], AdamWSettings())
        for weight, _ in optimizer.weights():
            optimizer.groups[0][2].state[weight.master] = {
                key: torch.zeros(shape, device="cuda")
                for key, shape in (("step", ()), ("exp_avg", (1500, 3)), ("exp_avg_sq", (1500, 3)))}
        with PeakTracker() as tracker:
            tracker.track(optimizer.tensors())
            before = tracker.live_bytes
            saved = optimizer.state()
            made = tracker.peak_bytes - before
    assert before == 3 * (3 * 4 * 4500 + 4)
    assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
    assert made == sum(tensor.nbytes for tensor in saved.values()) == before  # and nothing on the device


def test_masters_come_back_as_they_were() -> None:
    weights = _parameters(torch.bfloat16)
    optimizer = UnitwiseAdamW([({str(i): p for i, p in enumerate(weights)}, 1e-2)], AdamWSettings())
    saved, working = optimizer.masters(), [p.detach().clone() for p in weights]
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, 1.0)
    assert not any(torch.equal(a, b) for a, b in zip(weights, working, strict=True))
    optimizer.load_masters(saved)
    assert all(torch.equal(a, b) for a, b in zip(weights, working, strict=True))
    assert all(torch.equal(saved[name], tensor) for name, tensor in optimizer.masters().items())
