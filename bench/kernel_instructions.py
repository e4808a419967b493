"""Instructions that the kernel of trellis codes takes a weight, compiled for GPUs that need not be there.

    python -m bench.kernel_instructions

It has no loops, so that every thread of a program runs each instruction once: what stands in the machine code, without
padding and branches to itself, times threads over weights. Counted, not timed.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from qra_bo.finetune.quantization import trellis_kernel
from qra_bo.finetune.quantization.rings import ROTATION, STATE_BITS
from qra_bo.memory.formats import RING_STEP

CAPABILITIES = (80, 86, 89, 90)
LENGTH = 256
"""Outputs of a ring."""


def instructions(bits: int, capability: int) -> dict[str, int]:
    """Return the instructions of the compiled kernel by name."""
    types = {"codes": "*u8", "scale": "*bf16", "steps": "*u8", "levels": "*fp16", "turn": "*fp16",
             "fractions": "*fp32", "out": "*bf16", "height": "i32", "width": "i32", "pairs": "i32"}
    fixed = {"LENGTH": LENGTH, "BITS": bits, "STATE_BITS": STATE_BITS, "BLOCK": ROTATION,
             "GROUPS": trellis_kernel.GROUPS}
    aligned = {(at,): [["tt.divisibility", 16]] for at in range(9)}  # pointers and the width, as at a launch
    source = ASTSource(trellis_kernel.unpack_kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed, aligned)
    compiled = compile(source, GPUTarget("cuda", capability, 32), options={"num_warps": trellis_kernel.WARPS})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "-sass", file.name], check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = {}
    for name in re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", text, re.MULTILINE):
        if name not in ("NOP", "BRA"):
            found[name] = found.get(name, 0) + 1
    return found


def main() -> None:
    """Print instructions a weight by bits and compute capability, and the most frequent ones."""
    weights = trellis_kernel.GROUPS * RING_STEP * ROTATION / (32 * trellis_kernel.WARPS)
    for bits in (1, 2, 3, 4):
        for capability in CAPABILITIES:
            found = instructions(bits, capability)
            most = sorted(found.items(), key=lambda item: -item[1])[:8]
            print(f"t{bits} sm_{capability}: {sum(found.values()) / weights:.1f} a weight; of them "
                  + ", ".join(f"{name} {count / weights:.2f}" for name, count in most), flush=True)


if __name__ == "__main__":
    main()
