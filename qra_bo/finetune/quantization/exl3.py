"""Linears and heads over EXL3's trellis codes: those of a folder (``codes=stored``), or chosen here.

``W = diag(suh) H T H diag(svh)`` with inputs as rows, ``H`` the orthonormal Hadamard matrix of 128 by blocks. ``T`` is
made of tiles of 16 x 16, whose 256 weights, in the order of a tensor core's fragments, are one ring: the state of a
weight is the 16 bits of the ring that end with its own. Layout: ``exl3_dq.cuh``, ``frac.cu``, ``codebook.cuh`` and
``exl3_lib/quantize.py`` of exllamav3. Values of ``T`` are exllamav3's bit for bit. It rounds products to fp16 between
the steps; here all is fp32, and in one order on every device.

Codes are chosen a row of tiles at a time, and GPTQ compensates the error of its 16 inputs in later ones. Vectors hold
random signs and the scales of outputs.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization import fused_unpack
from qra_bo.finetune.quantization.base import HalfLinear, RingBackend, State
from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.finetune.quantization.viterbi import ring_states
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, STRIP, in_strips
from qra_bo.memory.formats import strips_at_once
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import ConfigError

TILE = 16
GAINS: Mapping[str, float] = {"exl3-mul1-2": 1.0, "exl3-mul1-3": 1.1, "exl3-mul1-4": 1.1}
"""Scale of least squared error on normal numbers, over their root mean square, of formats that are made here."""


@cache
def table(codebook: str, device: torch.device) -> Tensor:
    """Return the values of the 65,536 states, in fp32; all are numbers of fp16."""
    states = torch.arange(1 << 16) * CODEBOOKS[codebook] + 64248484 * (codebook == "3inst") & 0xFFFFFFFF
    if codebook == "mul1":  # one multiplication and addition of numbers of fp16, which fp32 holds exactly
        octets = states.to(torch.int32).view(torch.uint8).view(-1, 4).sum(1)
        return ((1024 + octets).float() * (1774 / 2**18) - 1329 / 2**7).half().float().to(device)
    halves = ((states & 0x8FFF8FFF) ^ 0x3B603B60).to(torch.int32).view(torch.float16).view(-1, 2)
    return halves.float().sum(1).half().float().to(device)


def _places() -> Tensor:
    """Return which of a tile's weights, ``16 inputs x 16 outputs``, each weight of its ring is."""
    place = torch.arange(TILE * TILE)
    row = 2 * (place >> 3 & 3) + (place & 1) + 8 * (place >> 1 & 1)
    return row * TILE + (place >> 5) + 8 * (place >> 2 & 1)


@cache
def windows(half_bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each weight of a tile, ``16 inputs x 16 outputs``, the pair of 16-bit words that its state is in, and
    how far to shift it right. With half a bit every second weight of a ring has one bit more."""
    order = _places().argsort()
    start = (torch.arange(1, TILE * TILE + 1) * half_bits // 2 - 16) % (128 * half_bits)
    return (start // 16)[order].to(device), (16 - start % 16)[order].int().view(-1, 1, 1).to(device)


def _hadamard(matrix: Tensor, dim: int, size: int) -> None:
    """Multiply runs of ``size`` along ``dim`` by a Hadamard matrix, in place: by sums and differences, in an order that
    does not depend on the device as a product's does."""
    for bit in range(size.bit_length() - 1):
        low, high = matrix.view(*matrix.shape[:dim], -1, 2, 1 << bit, *matrix.shape[dim + 1:]).unbind(dim + 1)
        difference = low - high
        low.add_(high)
        high.copy_(difference)


def _strips(codes: Tensor, suh: Tensor, svh: Tensor, fmt: StorageFormat) -> Tensor:
    """Return the weights of strips of 128 outputs, ``outputs x in`` in fp32 with ``in`` padded, of their codes (``in /
    16 x outputs / 16 x words``)."""
    kind = EXL3[fmt.name]
    index, shift = windows(kind.half_bits, codes.device)
    words = codes.view(*codes.shape[:2], -1, 2).flip(3).permute(2, 3, 0, 1).flatten(0, 1).int().bitwise_and_(0xFFFF)
    words = words.roll(-1, 0).bitwise_or_(words.bitwise_left_shift_(16))
    states = words.index_select(0, index).bitwise_right_shift_(shift).bitwise_and_(0xFFFF)
    del words
    tiles = table(kind.codebook, codes.device).index_select(0, states.view(-1)).view(TILE, TILE, *codes.shape[:2])
    del states
    _hadamard(tiles, 0, TILE)
    out = tiles.permute(3, 1, 2, 0).reshape(codes.shape[1] * TILE, -1, TILE)
    del tiles
    _hadamard(out, 1, STRIP // TILE)
    _hadamard(out, 0, STRIP)
    out = out.flatten(1)
    return out.mul_(suh.float()).mul_((svh.float() / STRIP).unsqueeze(1))


def unpacked(state: State, fmt: StorageFormat, rows: range, width: int, dtype: torch.dtype,
             target: torch.device | None = None) -> Tensor:
    """Return outputs of a matrix with ``width`` inputs, ``rows x width`` in ``dtype``: on CUDA by one kernel.
    ``target`` is the device that tensors on the meta device stand for."""
    device = state["codes"].device
    if device.type != "cuda":
        return _by_operators(state, fmt, rows, width, dtype, target)
    kind, part = (fmt.name, dtype, device), rows[:STRIP * strips_at_once(in_strips(width), device.type)]
    if kind not in fused_unpack.compared and part != rows:  # no second matrix is alive while both are compared
        unpacked(state, fmt, part, width, dtype)
    given = state, fmt, rows, width, dtype
    return fused_unpack.unpacked(kind, lambda: fused_unpack.by_kernel("exl3_kernel", device, *given),
                                 lambda: _by_operators(*given))


def _by_operators(state: State, fmt: StorageFormat, rows: range, width: int, dtype: torch.dtype,
                  target: torch.device | None = None) -> Tensor:
    codes = state["codes"]
    out = torch.empty(len(rows), width, dtype=dtype, device=codes.device)
    step = STRIP * strips_at_once(codes.shape[0] * TILE, (target or codes.device).type)
    for first in range(rows.start // STRIP * STRIP, rows.stop, step):
        last = min(first + step, len(state["svh"]))
        start, stop = max(first, rows.start), min(last, rows.stop)
        out[start - rows.start:stop - rows.start] = _strips(
            codes[:, first // TILE:last // TILE], state["suh"], state["svh"][first:last], fmt)[
                start - first:stop - first, :width]
        if target is not None:  # on the meta device one step stands for all
            break
    return out


class Exl3Linear(HalfLinear):
    """A frozen linear layer whose ``weight`` holds tiles, ``in / 16 x out / 16 x words``."""

    def unpack(self) -> Tensor:
        return unpacked(self.packed_state(), self.fmt, range(self.out_features), self.in_features, self.compute_dtype,
                        self.target)


class Exl3Table(PackedTable):
    """A head in tiles."""

    def _tile(self, first: int, last: int) -> Tensor:
        return unpacked(self.packed_state(), self.fmt, range(first, last), self.shape[1], self.compute_dtype,
                        self.target)


def _signs(side: int) -> Tensor:
    """Return the signs of a side's vector, the same for every matrix of that side."""
    return 1 - 2 * torch.randint(2, (side,), generator=torch.Generator().manual_seed(side)).float()


class Exl3Backend(RingBackend):
    """Tiles of EXL3, read from a folder or, in the formats of ``GAINS``, made here."""

    layer = Exl3Linear
    VERSION = 2

    def tables(self, fmt: StorageFormat, device: torch.device) -> tuple[Tensor, ...]:
        windows(EXL3[fmt.name].half_bits, device)
        return (table(EXL3[fmt.name].codebook, device),)

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        return {name: tensor.to(device) for name, tensor in self._coded(weight.cpu(), fmt, None).items()}

    def inputs(self, moments: Tensor) -> Inputs:
        added = in_strips(len(moments)) - len(moments)
        signs = _signs(len(moments) + added).to(moments.device)
        turned = nn.functional.pad(moments, (0, added, 0, added)) * signs * signs.unsqueeze(1)
        for dim in (0, 1):
            _hadamard(turned, dim, STRIP)
        return Inputs.of(turned.div_(STRIP), by_moment=False)

    def compensated(self, weight: Tensor, fmt: StorageFormat, inputs: Inputs) -> State:
        return self._coded(weight, fmt, inputs.factor)

    def _coded(self, weight: Tensor, fmt: StorageFormat, factor: Tensor | None) -> State:
        """Return the packed tensors of a weight (``out x in``) on the host: the nearest, or with the error of earlier
        inputs compensated by the ``factor`` of their moments. Raises ``ConfigError`` for a format that is only read."""
        if fmt.name not in GAINS:
            raise ConfigError(f"{fmt.name} is read from EXL3 folders (codes=stored); made are {', '.join(GAINS)}")
        (rows, width), levels = map(in_strips, weight.shape), table(EXL3[fmt.name].codebook, weight.device)
        added = (0, width - weight.shape[1], 0, rows - weight.shape[0])
        rest = nn.functional.pad(weight.float(), added).t().contiguous()
        root = rest.square().mean(0).sqrt()
        share = (root > 0).float().view(-1, STRIP).mean(1).sqrt().repeat_interleave(STRIP)  # the rest is thinner there
        suh, svh = _signs(width), (root * share * GAINS[fmt.name] * _signs(rows)).half()
        rest.mul_(suh.unsqueeze(1)).div_(torch.where(svh == 0, torch.inf, svh.float()))
        for dim in (0, 1):
            _hadamard(rest, dim, STRIP)
        rest /= STRIP
        state = {name: torch.empty_like(tensor, device="cpu")
                 for name, tensor in self.empty_state(fmt, (rows, width), weight.dtype).items()}
        places, tile = _places(), (TILE, rows // TILE, TILE)
        order = places.argsort()
        for row, start in enumerate(range(0, width, TILE)):
            end = start + TILE
            rings = rest[start:end].view(tile).transpose(0, 1).reshape(-1, TILE * TILE)[:, places]
            states = ring_states(rings, torch.ones_like(rings), levels, fmt.bits)
            bits = (states.unsqueeze(-1) >> torch.arange(fmt.bits - 1, -1, -1) & 1).view(len(states), -1, 32)
            words = (bits.long() << torch.arange(31, -1, -1)).sum(-1)  # a state's last bits are its code
            state["codes"][row] = words.to(torch.int32).view(torch.int16)
            if factor is not None:
                found = levels[states[:, order]].view(-1, TILE, TILE).transpose(0, 1).reshape(TILE, rows)
                later = torch.linalg.solve_triangular(factor[start:end, start:end], factor[start:end, end:], upper=True)
                rest[end:] -= later.T @ (rest[start:end] - found)
        return {**state, "suh": suh.half(), "svh": svh}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        (rows, width), words = map(in_strips, shape), 8 * EXL3[fmt.name].half_bits
        return {"codes": torch.empty(width // TILE, rows // TILE, words, dtype=torch.int16, device="meta"),
                "suh": torch.empty(width, dtype=torch.float16, device="meta"),
                "svh": torch.empty(rows, dtype=torch.float16, device="meta")}
