"""Rings of trellis codes down the columns of a weight matrix: their tables, bits, and what they unpack to.

The columns are rotated in blocks of ``ROTATION`` before they are coded: signs and a Hadamard matrix spread what stands
out in one input over 64, and make weights nearly Gaussian, for which the tables are trained. Rings run along the
outputs, so that a column of the rotated weights is coded as a whole. The bits of a ring are in order, its first code in
the upper bits of its first byte; neighbouring columns are neighbours in memory, so that unpacking moves whole rows.
"""

import base64
import json
from functools import cache
from importlib import resources

import torch
from scipy.linalg import hadamard
from torch import Tensor

from qra_bo.memory.formats import RING_STEP, ring_length

STATE_BITS = 12
"""Bits of a state: one more halves what is left to the bound and doubles the time of coding."""
UNIT = 2.0 ** -9
ROTATION = 64
SIGNS = 0x65C9BF1F112269F3
"""Signs of the columns of a block before the Hadamard matrix, drawn once; a set bit is positive."""
STEPS = 16
"""Scales of a block of inputs, in quarters of an octave below the largest of its row: four bits each."""


@cache
def table(bits: int, device: torch.device) -> Tensor:
    """Return the values of the ``2^STATE_BITS`` states for codes of ``bits`` bits, in fp32, as
    ``bench.trellis_tables`` trained them; all are multiples of 2^-9 below 4, so that fp16 holds them, and sums of 64
    are exact in fp32 in any order."""
    text = resources.files(__package__).joinpath("trellis_tables.json").read_text("ascii")
    units = bytearray(base64.b64decode(json.loads(text)["tables"][str(bits)]))
    return (torch.frombuffer(units, dtype=torch.int16).float() * UNIT).to(device)


@cache
def rotation(device: torch.device) -> Tensor:
    """Return the signs, ``64 x 64`` in fp32, that a block of columns is multiplied by; over 8 they are orthonormal."""
    signs = torch.tensor([1.0 if SIGNS >> row & 1 else -1.0 for row in range(ROTATION)])
    return (signs.unsqueeze(1) * torch.from_numpy(hadamard(ROTATION))).to(device)


@cache
def fractions(device: torch.device) -> Tensor:
    """Return what each of the ``STEPS`` steps leaves of a scale, in fp32."""
    return torch.tensor([2.0 ** (-step / 4) for step in range(STEPS)], device=device)


def rotated(matrix: Tensor, back: bool = False) -> Tensor:
    """Return a matrix, ``rows x in`` in fp32, with its blocks of columns rotated, or rotated back."""
    turn = rotation(matrix.device)
    return (matrix.reshape(-1, ROTATION) @ (turn.T if back else turn)).mul_(ROTATION ** -0.5).view(matrix.shape)


def rotated_moments(moments: Tensor) -> Tensor:
    """Return the second moments, ``in x in``, of rotated inputs."""
    return rotated(rotated(moments).T.contiguous())


def in_rings(states: Tensor, bits: int) -> Tensor:
    """Return packed rings, ``rings x bytes x in`` (uint8), of states (``rings length x in``, int32; padded), whose last
    bits are their codes."""
    rows, width = states.shape
    length = ring_length(rows)
    eight = (states & (1 << bits) - 1).reshape(rows // length, length // RING_STEP, RING_STEP, width)
    words = torch.zeros_like(eight[:, :, 0])
    for place in range(RING_STEP):
        words |= eight[:, :, place] << bits * (RING_STEP - 1 - place)
    packed = torch.stack([words >> RING_STEP * (bits - 1 - byte) & 255 for byte in range(bits)], dim=2)
    return packed.to(torch.uint8).view(rows // length, -1, width)


def values_of(rings: Tensor, bits: int) -> Tensor:
    """Return the values, ``rings length x in`` in fp32, of packed rings (``rings x bytes x in``), without scales."""
    count, size, width = rings.shape
    levels = table(bits, rings.device)
    values = torch.empty(count, size // bits, RING_STEP, width, device=rings.device)
    words = rings.int()
    before, earlier = (torch.roll(words, back, dims=1).bitwise_left_shift_(8 * back) for back in (1, 2))
    words.bitwise_or_(before).bitwise_or_(earlier)  # the 24 bits that end with each byte
    del before, earlier
    words = words.view(count, -1, bits, width)
    for place in range(RING_STEP):
        byte, beyond = divmod((place + 1) * bits - 1, RING_STEP)
        state = words[:, :, byte] >> RING_STEP - 1 - beyond & (1 << STATE_BITS) - 1
        values[:, :, place] = levels.index_select(0, state.view(-1)).view(state.shape)
    return values.view(-1, width)
