"""Trellis codes of 1 to 4 bits a weight, close to what any code of so many bits can reach on Gaussian weights.

A row has a scale, which four bits lower for each block of 64 inputs. Codes are those of QTIP (arXiv 2406.11235); here
rings run along the outputs of one rotated input, so that GPTQ's feedback between inputs stays exact (``rings.py``).
"""

from functools import partial

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization import rings
from qra_bo.finetune.quantization.base import PackedLinear, RingBackend, State
from qra_bo.finetune.quantization.fused_unpack import by_kernel, unpacked
from qra_bo.finetune.quantization.gptq import BLOCK
from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.finetune.quantization.viterbi import ring_states
from qra_bo.memory.formats import ring_length, rings_of
from qra_bo.space.space import StorageFormat


class TrellisLinear(PackedLinear):
    """A frozen linear layer over rings of trellis codes, a scale a row, and four bits a row and block of inputs."""

    def unpack(self) -> Tensor:
        device = self.weight.device
        if device.type != "cuda":
            return self._by_operators()
        fused = partial(by_kernel, "trellis_kernel", device, self.packed_state(), self.fmt.bits, self.compute_dtype)
        return unpacked((self.fmt.name, self.compute_dtype, device), fused, self._by_operators)

    def _by_operators(self) -> Tensor:
        out = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=self.weight.device)
        length = ring_length(self.out_features)
        for ring, codes in enumerate(torch.split(self.weight.data, 1)):
            rows = slice(ring * length, min((ring + 1) * length, self.out_features))
            out[rows] = self._weights(codes, rows)
        return out

    def _weights(self, codes: Tensor, rows: slice) -> Tensor:
        """Return the weights of a ring, ``rows x in`` in fp32."""
        values = rings.values_of(codes, self.fmt.bits)[:rows.stop - rows.start]
        scale = spread_scales(self.others["scale"][rows], self.others["steps"][rows], self.in_features)
        blocks = rings.rotated(values, back=True).view(*scale.shape, rings.ROTATION)  # rotated together: a scale each
        return blocks.mul_(scale.unsqueeze(2)).view(-1, self.in_features)


class TrellisBackend(RingBackend):
    """Trellis storage: rotated weights by rings, with a scale for each row or for each of its blocks of inputs."""

    layer = TrellisLinear
    VERSION = 3

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        turned = rings.rotated(weight.cpu().float())  # see ``Rounding``: rings are coded on the host
        scale, steps = scales_of(turned)
        (targets, spread), length = _by_column(turned, scale, steps), ring_length(len(weight))
        states = ring_states((targets / spread.where(spread > 0, torch.inf)).view(-1, length),
                             _importance(spread).view(-1, length), rings.table(fmt.bits, turned.device), fmt.bits)
        packed = rings.in_rings(states.view(targets.shape).t(), fmt.bits)
        return {"codes": packed.to(device), "scale": scale.to(device), "steps": steps.to(device)}

    def inputs(self, moments: Tensor) -> Inputs:
        return Inputs.of(rings.rotated_moments(moments))

    def compensated(self, weight: Tensor, fmt: StorageFormat, inputs: Inputs) -> State:
        """See ``RingBackend``: no ring is coded in part, so that a whole input is before its error is compensated."""
        turned = rings.rotated(weight.float())
        (scale, steps), levels = scales_of(turned), rings.table(fmt.bits, weight.device)
        length, order, factor = ring_length(len(weight)), inputs.order, inputs.factor
        rest, spread = (columns[order] for columns in _by_column(turned, scale, steps))
        divisor, importance = spread.where(spread > 0, torch.inf), _importance(spread)
        states = torch.empty(rest.shape, dtype=torch.int32, device=rest.device)
        for start in range(0, len(rest), BLOCK):
            end = min(start + BLOCK, len(rest))
            errors = torch.empty_like(rest[start:end])
            for j in range(start, end):
                found = ring_states((rest[j] / divisor[j]).view(-1, length), importance[j].view(-1, length), levels,
                                    fmt.bits)
                states[j] = found.view(-1)
                errors[j - start] = (rest[j] - levels[states[j]] * spread[j]) / factor[j, j]
                rest[j + 1:end] -= factor[j, j + 1:end, None] * errors[j - start]
            rest[end:] -= factor[start:end, end:].t() @ errors
        return {"codes": rings.in_rings(states[torch.argsort(order)].t(), fmt.bits), "scale": scale, "steps": steps}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        sizes = rings_of(shape[0]), ring_length(shape[0]) * fmt.bits // 8, shape[1]
        return {"codes": torch.empty(sizes, dtype=torch.uint8, device="meta"),
                "scale": torch.empty(shape[0], dtype=torch.bfloat16, device="meta"),
                "steps": torch.empty(shape[0], -(-shape[1] // (2 * rings.ROTATION)), dtype=torch.uint8, device="meta")}

    def tables(self, fmt: StorageFormat, device: torch.device) -> tuple[Tensor, ...]:
        for shared in (rings.rotation, rings.fractions):
            shared(device)
        rings.table(fmt.bits, device)
        return ()  # counted where weights are unpacked


def scales_of(turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales of rotated weights (``out x in``): one of every row (``out``, bf16), and what lowers it to the
    root mean square of each block, two steps of four bits in a byte (``out x in / 128``, rounded up)."""
    root = turned.view(len(turned), -1, rings.ROTATION).square().mean(dim=2).sqrt()
    scale = root.amax(dim=1).bfloat16()
    below = -4 * (root / scale.float().clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).log2()
    steps = below.round().clamp_(0, rings.STEPS - 1).to(torch.uint8)
    pairs = nn.functional.pad(steps, (0, steps.shape[1] % 2)).view(len(steps), -1, 2)
    return scale, pairs[:, :, 0] | pairs[:, :, 1] << 4


def spread_scales(scale: Tensor, steps: Tensor, width: int) -> Tensor:
    """Return the scale of every row and block, ``out x in / 64`` in fp32, of what ``scales_of`` returns."""
    both = torch.stack([steps & rings.STEPS - 1, steps >> 4], dim=2).view(len(steps), -1)[:, :width // rings.ROTATION]
    return scale.float().unsqueeze(1) * rings.fractions(scale.device)[both.long()]


def _by_column(turned: Tensor, scale: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated weights and their scales, both ``in x rows`` in fp32 with rows padded to whole rings."""
    rows = rings_of(len(turned)) * ring_length(len(turned))
    spread = spread_scales(scale, steps, turned.shape[1]).repeat_interleave(rings.ROTATION, dim=1)
    padded = (nn.functional.pad(matrix, (0, 0, 0, rows - len(turned))) for matrix in (turned, spread))
    columns, scales = (matrix.t().contiguous() for matrix in padded)
    return columns, scales


def _importance(spread: Tensor) -> Tensor:
    """Return how often the squared error of each weight counts in units of its scale, 1 in the mean of a column."""
    square = spread.square()
    return square / square.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
