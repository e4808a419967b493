"""Trellis codes: the best rings, their bits, what outliers do, and the kernel."""

import itertools

import pytest
import torch
from torch import Tensor

from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.finetune.quantization.rings import (
    ROTATION,
    STATE_BITS,
    in_rings,
    rotated,
    rotated_moments,
    table,
    values_of,
)
from qra_bo.finetune.quantization.trellis import TrellisBackend
from qra_bo.finetune.quantization.viterbi import ring_states
from qra_bo.memory.formats import parse_format, ring_length, rings_of
from tests.finetune.kernels import run_with_triton

CPU = torch.device("cpu")
KERNEL = """
import torch
from qra_bo.finetune.quantization.trellis_kernel import fused_unpack
from qra_bo.memory.formats import parse_format
from tests.conformance.quantizer import make_linear, quantize

for bits in (1, 2, 3, 4):
    for height, width in ((40, 128), (300, 64)):  # padded rings; an odd number of blocks
        layer = quantize(make_linear(height, width), parse_format(f"t{bits}"), torch.float16)
        assert torch.equal(fused_unpack(layer.packed_state(), bits, torch.float16), layer.unpack()), (bits, height)
"""


def states_of(codes: Tensor, bits: int, state_bits: int) -> Tensor:
    """States of rings of codes, ``rings x n``: windows of the last bits, around the ring."""
    states = torch.zeros(codes.shape, dtype=torch.long)
    for back in range(-(-state_bits // bits)):
        states |= torch.roll(codes, back, dims=1).long() << bits * back
    return states & (1 << state_bits) - 1


@pytest.mark.parametrize(("state_bits", "bits", "n"), [(4, 1, 12), (4, 2, 7), (6, 3, 4)])
def test_rings_are_as_good_as_the_best_of_all(state_bits: int, bits: int, n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    levels = torch.randn(1 << state_bits, generator=draw)
    targets, weights = torch.randn(40, n, generator=draw), torch.rand(40, n, generator=draw) + 0.5
    every = torch.tensor(list(itertools.product(range(1 << bits), repeat=n)), dtype=torch.uint8)
    errors = (levels[states_of(every, bits, state_bits)].unsqueeze(1) - targets).square()
    best = (errors * weights).sum(dim=2).amin(dim=0)
    states = ring_states(targets, weights, levels, bits)
    assert torch.equal(states, states_of(states & (1 << bits) - 1, bits, state_bits))  # the rings close
    found = (weights * (levels[states] - targets).square()).sum(dim=1)
    assert (found >= best - 1e-5).all()
    assert float((found - best).mean()) < 0.1 * float(best.mean())  # the first pass may close a short ring badly
    assert float((found < best + 1e-5).float().mean()) > 0.8


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_tables_have_the_published_distortion(bits: int) -> None:
    numbers = torch.randn(24, 192, generator=torch.Generator().manual_seed(5))
    levels = table(bits, CPU)
    states = ring_states(numbers, torch.ones_like(numbers), levels, bits)
    error = float((levels[states] - numbers).square().mean())
    assert error == pytest.approx({1: 0.2714, 2: 0.0711, 3: 0.0185, 4: 0.0048}[bits], rel=0.1)
    assert error > 4.0 ** -bits  # the rate-distortion bound of a Gaussian


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("out", [16, 104, 384, 576])
def test_packed_rings_hold_their_codes_in_order(bits: int, out: int) -> None:
    codes = torch.randint(1 << bits, (out, 5), dtype=torch.int32, generator=torch.Generator().manual_seed(out))
    rings = in_rings(codes, bits)
    assert 8 * rings.numel() == bits * codes.numel()
    states = torch.cat([states_of(ring.t(), bits, STATE_BITS).t() for ring in codes.split(ring_length(out))])
    assert torch.equal(values_of(rings, bits), table(bits, CPU)[states])


def test_rings_have_128_to_256_outputs_where_a_divisor_has() -> None:
    assert {out: ring_length(out) for out in (576, 192, 1536, 896, 4864, 151)} == \
        {576: 192, 192: 192, 1536: 256, 896: 224, 4864: 256, 151: 152}
    for out in range(1, 700):
        padded = rings_of(out) * ring_length(out)
        assert padded >= out
        assert ring_length(padded) == ring_length(out)
        assert ring_length(out) % 8 == 0
        assert ring_length(out) >= STATE_BITS


def test_rotation_is_exact_on_values_of_the_tables() -> None:
    drawn = table(2, CPU)[torch.randint(4096, (7, 2 * ROTATION), generator=torch.Generator().manual_seed(3))]
    assert torch.equal(rotated(rotated(drawn), back=True), drawn)
    shuffled = torch.randperm(ROTATION, generator=torch.Generator().manual_seed(4))
    assert torch.equal(rotated(drawn)[:, :ROTATION], rotated(drawn[:, :ROTATION]))
    exact = rotated(drawn.double().float())[:, shuffled]
    assert torch.equal(exact, rotated(drawn)[:, shuffled])


def output_error(weight: Tensor, found: Tensor, moments: Tensor) -> float:
    error = found - weight
    return float(((error @ moments) * error).sum() / ((weight @ moments) * weight).sum())


def compensated(weight: Tensor, moments: Tensor, name: str) -> Tensor:
    backend, fmt = TrellisBackend(), parse_format(name)
    state = backend.compensated(weight, fmt, Inputs.of(rotated_moments(moments)))
    return backend.build(state, fmt, (weight.shape[0], weight.shape[1]), None, torch.float32).unpack()


def problem(rows: int = 136, width: int = 128) -> tuple[Tensor, Tensor]:
    """A Gaussian weight, and second moments of correlated inputs."""
    draw = torch.Generator().manual_seed(8)
    mix = torch.randn(width, width, generator=draw) / width ** 0.5 + torch.eye(width)
    inputs = torch.randn(4 * width, width, generator=draw) @ mix
    return torch.randn(rows, width, generator=draw) * 0.05, inputs.T @ inputs


def test_feedback_lowers_the_error_of_outputs() -> None:
    weight, moments = problem()
    backend, fmt = TrellisBackend(), parse_format("t2")
    nearest = backend.build(backend.pack(weight, fmt, CPU), fmt, (136, 128), None, torch.float32).unpack()
    assert output_error(weight, compensated(weight, moments, "t2"), moments) < \
        0.6 * output_error(weight, nearest, moments)


@pytest.mark.parametrize("what", ["a row", "a block of a row", "an input", "a column"])
def test_outliers_harm_no_other_weight(what: str) -> None:
    weight, moments = problem()
    usual = output_error(weight, compensated(weight, moments, "t2"), moments)
    if what == "a row":
        weight[7] *= 20
    elif what == "a block of a row":
        weight[7, :ROTATION] *= 8
    elif what == "a column":
        weight[:, 9] *= 20
    else:
        moments[9] *= 30
        moments[:, 9] *= 30
    assert output_error(weight, compensated(weight, moments, "t2"), moments) < 1.3 * usual


@pytest.mark.slow
def test_kernel_has_the_bits_of_the_operators() -> None:
    run_with_triton(KERNEL, "1")
