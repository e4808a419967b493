"""Estimated seconds of a training step: by hand on one layer, and in the right proportions."""

from dataclasses import replace

import pytest

from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.cards import CARDS, Card
from qra_bo.memory.speed import BANDWIDTH_SHARE, COMPUTE_SHARE, LAUNCH_SECONDS, LAUNCHES, step_seconds
from qra_bo.space import uniform
from qra_bo.space.decoder import spec_from_numbers
from tests.memory.spaces import LLAMA2_7B, TINY, space_of

CARD = CARDS["rtx4090"]


def seconds(shape: TrainShape, fmt: str = "nf4", rank: int = 16, card: Card = CARD) -> float:
    space = space_of(LLAMA2_7B, formats=(fmt,), ranks=(rank,))
    return step_seconds(MemoryModel(LLAMA2_7B, shape), space, uniform(32, fmt, rank), card)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_layer_by_hand(checkpointing: bool) -> None:
    spec = spec_from_numbers("one", "llama", n_layers=1, hidden_size=4096, intermediate_size=8192, n_heads=32,
                             n_kv_heads=8, head_dim=128, vocab_size=1000, tied=True)
    linears = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 8192 * 4096
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 8192)
    tokens, again = 8 * 1024, int(checkpointing)
    operations = tokens * (
        2 * linears * (2 + again)                  # forward, backward to inputs, and forward once more
        + 2 * 8 * sides * (3 + again)              # adapters of rank 8, their weights' gradients too
        + 3 * 2 * 1000 * 4096                      # the head's logits are computed twice
        + 2 * (3.5 + again) * 32 * 128 * 1024)     # half of two products with 1,024 keys; backward two and a half times
    rows = 3 * 4096 + 2 * 1024 + 2 * 8192          # of q, o and down; of k and v; of gate and up
    packed = linears + 4 * rows                    # int8 codes and an fp32 scale a row
    shape = TrainShape(8, 1024, checkpointing, device="cuda")
    found = step_seconds(MemoryModel(spec, shape), space_of(spec, formats=("int8",)), uniform(1, "int8", 8), CARD)
    assert found == pytest.approx(
        operations / (COMPUTE_SHARE * 165.2e12) + (2 + again) * (packed + 2 * linears) / (BANDWIDTH_SHARE * 1.008e12))


def test_small_models_are_bounded_by_launches() -> None:
    for checkpointing in (False, True):
        shape = TrainShape(4, 64, checkpointing, device="cuda")
        assert step_seconds(MemoryModel(TINY, shape), space_of(), uniform(4, "nf4", 4), CARD) == \
            4 * LAUNCHES[checkpointing] * LAUNCH_SECONDS


def test_more_work_takes_longer_and_faster_cards_less() -> None:
    shape = TrainShape(4, 128, device="cuda")
    base = seconds(shape)
    assert seconds(replace(shape, checkpointing=True)) > base
    assert base < seconds(replace(shape, batch=8)) < 2 * base  # dequantised once a pass, whatever the batch
    assert seconds(shape, rank=32) > base > seconds(shape, "fp16")
    assert seconds(shape, card=CARDS["h100"]) < base < seconds(shape, card=CARDS["t4"])
