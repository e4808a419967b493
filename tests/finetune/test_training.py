import itertools
import math

import numpy as np
import pytest
import torch

from qra_bo.finetune.adapters.lora import adapter_parameters, attach, detach
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.training.learning_rate import RATE_RULES, RateRule
from qra_bo.finetune.training.loop import TrainSettings, held_out, train_step
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from tests.finetune.models import tiny_llama

MODEL, SPEC = tiny_llama()
CPU = torch.device("cpu")
BLOCKS = np.random.default_rng(0).integers(0, 97, (8, 16))


def test_schedule_rises_then_falls_to_its_floor() -> None:
    s = TrainSettings(warmup=0.25, lr_floor=0.1)
    factors = [s.lr_factor(i, 16) for i in range(16)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[10] == pytest.approx(0.55)  # half-way down the cosine
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))
    assert s.lr_factor(16, 16) == pytest.approx(0.1)


def test_learning_rate_rule_in_the_rank() -> None:
    s = TrainSettings()
    assert s.peak_lr(2e-3, 16) == 2e-3
    assert s.peak_lr(2e-3, 4) == pytest.approx(4e-3)
    assert TrainSettings(lr_rule=RATE_RULES["constant"]).peak_lr(2e-3, 1) == 2e-3
    assert TrainSettings(lr_rule=RATE_RULES["inverse"]).peak_lr(2e-3, 4) == pytest.approx(8e-3)


def test_learning_rate_rule_in_the_length() -> None:
    rule = RateRule(0.5, -0.2, -0.1)
    s = TrainSettings(lr_rule=rule, lr_steps=24)
    assert s.peak_lr(1.0, 4) == s.peak_lr(1.0, 4, 24) == pytest.approx(2.0)
    assert s.peak_lr(1.0, 4, 240) == pytest.approx(4**0.3 / 10**0.1)
    assert s.peak_lr(1.0, 16, 240) == pytest.approx(1 / 10**0.1)
    assert s.peak_lr(1.0, 4, 24_000) == s.peak_lr(1.0, 4, 240)  # not beyond what was measured
    assert s.peak_lr(1.0, 4, 2) == s.peak_lr(1.0, 4)
    assert RateRule(0.1, -0.5).factor(1, 10) == 1.0  # a larger rank never gets the larger rate
    assert TrainSettings(lr_rule=rule).peak_lr(1.0, 4, 240) == pytest.approx(2.0)


def test_units_get_their_own_rate() -> None:
    ranks = {linear.name: 1 + linear.layer for linear in SPEC.linears}
    attach(MODEL, ranks, 2.0, 0, torch.float32)
    try:
        groups = TrainSettings().unit_groups(adapter_parameters(MODEL), {n: n.split(".")[2] for n in ranks},
                                             {"0": 1, "1": 2}, 0.5)
        assert [(len(named), lr) for named, lr in groups] == [(14, 2.0), (14, pytest.approx(math.sqrt(8) / 2))]
    finally:
        detach(MODEL)


def test_training_learns_and_padding_counts_for_nothing() -> None:
    settings = TrainSettings(batch=4, logits_chunk=8)
    labels = BLOCKS.copy()
    labels[:, 10:] = -100
    names = {linear.name: 4 for linear in SPEC.linears}
    attach(MODEL, names, 2.0, 0, torch.float32)
    try:
        groups = settings.unit_groups(adapter_parameters(MODEL), dict.fromkeys(names, "all"), {"all": 4}, 5e-3)
        optimizer = UnitwiseAdamW(groups, settings.optimizer)
        before = held_out(MODEL, TokenBlocks(BLOCKS, labels), settings, CPU)
        order = np.arange(8).reshape(2, 4)[np.arange(20) % 2]
        tokens = sum(train_step(MODEL, optimizer, TokenBlocks(BLOCKS, labels), order, step, settings, CPU)[1]
                     for step in range(20))
        after = held_out(MODEL, TokenBlocks(BLOCKS, labels), settings, CPU)
        assert tokens == 20 * 4 * 16
        assert after.loss < before.loss - 0.3
        changed = BLOCKS.copy()
        changed[:, 12:] = 0
        assert held_out(MODEL, TokenBlocks(changed, labels), settings, CPU).loss == pytest.approx(after.loss, abs=1e-5)
    finally:
        detach(MODEL)


def gradients_and_step(batch: int, accumulate: int,
                       dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of one optimiser step, in fp32 and per target token, and the masters after it."""
    labels = BLOCKS.copy()
    for row, targets in enumerate((15, 1, 7, 0, 3, 12, 2, 9)):  # answer tokens differ, one row has none
        labels[row, 1 + targets:] = -100
    model, spec = tiny_llama()
    model.to(dtype)
    names = {linear.name: 4 for linear in spec.linears}
    attach(model, names, 2.0, 0, dtype)
    generator = torch.Generator().manual_seed(3)
    for pair in adapter_parameters(model).values():
        pair["B"].data.normal_(0, 0.05, generator=generator)  # at B = 0 the gradients of A vanish
    settings = TrainSettings(batch, accumulate, logits_chunk=8)
    groups = settings.unit_groups(adapter_parameters(model), dict.fromkeys(names, "all"), {"all": 4}, 5e-3)
    optimizer = UnitwiseAdamW(groups, settings.optimizer)
    found: list[torch.Tensor] = []

    def mark(phase: str) -> None:
        if phase == "backward":
            found[:] = [w.working.grad.float() / 49 for w, _ in optimizer.weights()]

    _, tokens = train_step(model, optimizer, TokenBlocks(BLOCKS, labels), np.tile(np.arange(8), (4, 1)), 0, settings,
                           CPU, mark)
    assert tokens == BLOCKS.size
    assert int((labels[:, 1:] != -100).sum()) == 49
    return found, [w.master.detach().clone() for w, _ in optimizer.weights()]


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 8), (2, 4), (4, 2)])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_accumulated_batches_train_as_one_batch(batch: int, accumulate: int, dtype: torch.dtype,
                                                rounding: float) -> None:
    whole, after_whole = gradients_and_step(8, 1, dtype)
    parts, after_parts = gradients_and_step(batch, accumulate, dtype)
    for one, other in zip(whole, parts, strict=True):
        assert torch.linalg.vector_norm(one - other) <= rounding * torch.linalg.vector_norm(one)
    # AdamW's first step is the sign of the gradient: where that is clear, every weight moves alike.
    for gradient, one, other in zip(whole, after_whole, after_parts, strict=True):
        clear = gradient.abs() > 10 * rounding * gradient.abs().max()
        assert clear.any()
        assert torch.allclose(one[clear], other[clear], rtol=1e-5, atol=1e-5)


def test_held_out_loss_is_a_mean_with_clustered_error() -> None:
    labels = BLOCKS.copy()
    labels[0, 5:] = -100
    settings = TrainSettings(batch=3, logits_chunk=3)
    result = held_out(MODEL, TokenBlocks(BLOCKS, labels), settings, CPU)
    sums, counts = [], []
    for row in range(8):
        ids, goal = torch.from_numpy(BLOCKS[row:row + 1]), torch.from_numpy(labels[row:row + 1])
        logits = MODEL(input_ids=ids).logits[0, :-1]
        sums.append(float(torch.nn.functional.cross_entropy(logits, goal[0, 1:], reduction="sum", ignore_index=-100)))
        counts.append(int((goal[0, 1:] != -100).sum()))
    mean = sum(sums) / sum(counts)
    residuals = np.array(sums) - mean * np.array(counts)
    assert result.loss == pytest.approx(mean, abs=1e-5)
    assert result.se == pytest.approx(np.sqrt((residuals**2).sum() * 8 / 7) / sum(counts), rel=1e-3)
