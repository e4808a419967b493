"""Instructions that unpacking takes a weight, compiled for GPUs that need not be there, and what a step then takes.

    python -m bench.kernel_instructions

Our kernels have no loops, so that every thread runs each instruction once: what stands in the machine code, without
padding and branches to itself, times threads over weights. ``nf4`` is bitsandbytes' own kernel, read from its library
(CUDA 12.8), whose loop runs once a thread. Counted, not timed.

The modelled step is of one weight and ``TOKENS`` tokens: forward, the same for a checkpoint, and the gradient of the
inputs. Each multiplies at the card's dense rate after it has unpacked, at one instruction a scheduler and clock, with
the rotation's products beside (EXL3 rotates by sums, which are among its instructions). Nothing overlaps, and no memory
is waited for, which favours ``nf4``: it reads more.
The numbers go to ``bench/results/kernel_instructions.json``.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from bench.report import Target, publish
from qra_bo.finetune.quantization import exl3_kernel, plane_kernel, trellis_kernel
from qra_bo.finetune.quantization.base import PLANE_NAMES
from qra_bo.finetune.quantization.rings import ROTATION, STATE_BITS
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, STRIP
from qra_bo.memory.formats import RING_STEP, Plane, has_zeros, parse_format, planes_of

RINGS, PLANES = ("t1", "t2", "t3", "t4"), ("int2-g64", "int3-g64", "int4-g64", "hqq5-g128", "hqq6-g128", "sym4-g32")
TILES = ("exl3-mul1-2", "exl3-mul1-2.5", "exl3-mul1-3", "exl3-mul1-4", "exl3-mcg-4", "exl3-3inst-4")
LENGTH = 256
"""Outputs of a ring."""
TOKENS = 2048
NF4 = "_Z20kDequantizeBlockwiseI13__nv_bfloat16Li512ELi64ELi8ELi2EEvPfPhS1_PT_ii"
NF4_WEIGHTS = 16
"""Weights of a thread of that kernel: two in each of its eight bytes."""
MOST = 1.03


@dataclass(frozen=True, slots=True)
class Card:
    """A card by its vendor's figures: dense products of two 16-bit numbers, summed in fp32, and instructions of single
    threads, both a second (multiprocessors x 128 x clock)."""

    name: str
    capability: int
    products: float
    instructions: float


CARDS = (Card("A100", 80, 156e12, 108 * 128 * 1.41e9), Card("RTX 3090", 86, 35.6e12, 82 * 128 * 1.695e9),
         Card("RTX 4090", 89, 82.6e12, 128 * 128 * 2.52e9), Card("H100", 90, 495e12, 132 * 128 * 1.83e9))


def counted(*listing: Any) -> dict[str, int]:
    """Return the instructions that ``cuobjdump -sass`` prints, by name."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-sass", *listing], check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = {}
    for name in re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", text, re.MULTILINE):
        if name not in ("NOP", "BRA"):
            found[name] = found.get(name, 0) + 1
    return found


def compiled(kernel: Any, types: Mapping[str, str], fixed: Mapping[str, int | str], capability: int,
             warps: int) -> dict[str, int]:
    """Return the instructions of one of our kernels, its pointers and numbers aligned as at a launch."""
    aligned = {(at,): [["tt.divisibility", 16]] for at in range(len(types))}
    source = ASTSource(kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, dict(fixed), aligned)
    made = compile(source, GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        return counted(file.name)


def of_rings(bits: int, capability: int) -> tuple[dict[str, int], float]:
    """Return the instructions of the kernel of trellis codes, and the weights of a thread."""
    types = {"codes": "*u8", "scale": "*bf16", "steps": "*u8", "levels": "*fp16", "turn": "*fp16",
             "fractions": "*fp32", "out": "*bf16", "height": "i32", "width": "i32", "pairs": "i32"}
    fixed = {"LENGTH": LENGTH, "BITS": bits, "STATE_BITS": STATE_BITS, "BLOCK": ROTATION,
             "GROUPS": trellis_kernel.GROUPS}
    weights = trellis_kernel.GROUPS * RING_STEP * ROTATION / (32 * trellis_kernel.WARPS)
    return compiled(trellis_kernel.unpack_kernel, types, fixed, capability, trellis_kernel.WARPS), weights


def of_planes(name: str, capability: int) -> tuple[dict[str, int], float]:
    """Return the instructions of the kernel of codes in planes, and the weights of a thread."""
    fmt = parse_format(name)
    own = planes_of(fmt)
    planes = [*own, *[Plane(0, 1, 1)] * (len(PLANE_NAMES) - len(own))]
    words = {at: f"*{'i32' if plane.word_bytes == 4 else 'u8'}" for at, plane in
             zip(("upper", "lower", "lowest"), planes, strict=True)}
    types = {**words, "scale": "*bf16", "zero": "*bf16", "out": "*bf16", "first": "i32", "numel": "i32",
             "upper_words": "i32", "lower_words": "i32", "lowest_words": "i32"}
    fields = {f"{at.upper()}_{what}": value for at, plane in zip(words, planes, strict=True)
              for what, value in (("BITS", plane.bits), ("FIELDS", plane.per_word))}
    fixed = {"GROUP": fmt.block, **fields, "MIDDLE": 0 if has_zeros(fmt) or fmt.backend == "hqq" else 1 << fmt.bits - 1,
             "BLOCK": plane_kernel.BLOCK}
    return compiled(plane_kernel.unpack_kernel, types, fixed, capability, 4), plane_kernel.BLOCK / 128


def of_tiles(name: str, capability: int) -> tuple[dict[str, int], float]:
    """Return the instructions of the kernel of EXL3's codes, and the weights of a thread."""
    types = {"codes": "*u32", "suh": "*fp16", "svh": "*fp16", "out": "*bf16", "first": "i32", "last": "i32",
             "width": "i32", "tiles": "i32"}
    book, half_bits = EXL3[name]
    fixed = {"HALF_BITS": half_bits, "BOOK": book, "FACTOR": CODEBOOKS[book], "STRIP": STRIP}
    weights = STRIP * STRIP / (32 * exl3_kernel.WARPS)
    return compiled(exl3_kernel.unpack_kernel, types, fixed, capability, exl3_kernel.WARPS), weights


def of_nf4(capability: int) -> tuple[dict[str, int], float]:
    """Return the instructions of bitsandbytes' kernel for NF4 in bf16, and the weights of a thread."""
    library = Path(bitsandbytes.__file__).parent / "libbitsandbytes_cuda128.so"
    return counted("-arch", f"sm_{capability}", "-fun", NF4, library), NF4_WEIGHTS


def step(card: Card, instructions: float, rotation: int) -> float:
    """Return the modelled seconds of a pass over one weight; ``rotation`` counts products to turn it back."""
    return (TOKENS + rotation) / card.products + instructions / card.instructions


def main() -> None:
    """Count, model, print and write."""
    rows = list[dict[str, Any]]()
    for card in CARDS:
        at = card.capability
        found = {"nf4": of_nf4(at), **{name: of_rings(parse_format(name).bits, at) for name in RINGS},
                 **{name: of_planes(name, at) for name in PLANES}, **{name: of_tiles(name, at) for name in TILES}}
        for name, (counts, weights) in found.items():
            each, nf4 = sum(counts.values()) / weights, sum(found["nf4"][0].values()) / found["nf4"][1]
            rows.append({"format": name, "card": card.name, "capability": card.capability, "instructions": each,
                         "loads": sum(n for what, n in counts.items() if what in ("LDG", "LDS", "LDSM")) / weights,
                         "step": step(card, each, ROTATION if name in RINGS else 0) / step(card, nf4, 0)})
    targets = [Target(f"modelled step of {', '.join(RINGS[1:3])} at {TOKENS:,} tokens, of that of nf4: the most of "
                      f"{len(CARDS)} cards", f"at most {MOST}",
                      most := max(r["step"] for r in rows if r["format"] in RINGS[1:3]), most <= MOST)]
    publish("kernel_instructions", targets, rows, ["format", "card", "instructions", "loads", "step"])


if __name__ == "__main__":
    main()
