import pytest
import torch
from torch.nn import Parameter

from qra_bo.oracle.optimizer import AdamWSettings, UnitwiseAdamW


def _parameters(dtype: torch.dtype) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(4, 3, generator=generator).to(dtype)) for _ in range(3)]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    def run(steps: range, parameters: list[Parameter], optimizer: UnitwiseAdamW) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = torch.randn(4, 3, generator=generator).to(dtype)
            optimizer.step(1.0, 1.0)

    def fresh() -> tuple[list[Parameter], UnitwiseAdamW]:
        p = _parameters(dtype)
        return p, UnitwiseAdamW([({"a": p[0], "b": p[1]}, 1e-2), ({"c": p[2]}, 1e-3)], AdamWSettings())

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
