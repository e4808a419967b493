"""Formats of files of others, which ``codes=stored`` trains on as they are. No torch."""

from collections.abc import Mapping
from typing import NamedTuple

from qra_bo.space.space import StorageFormat

BACKEND, ORDERED, TILES, STORED, OTHER = "gguf", "ordered", "exl3", "stored", "other"


class BlockType(NamedTuple):
    """Code bits of a weight, rounded down; weights and bytes of a block, which is a run of a row (``ggml-common.h`` of
    llama.cpp); bytes of the tables that its codes are looked up in (``finetune.quantization.stored``)."""

    bits: int
    weights: int
    size: int
    table: int = 0


TYPES: Mapping[str, BlockType] = {name: BlockType(*numbers) for name, numbers in {
    "Q4_0": (4, 32, 18), "Q4_1": (4, 32, 20), "Q5_0": (5, 32, 22), "Q5_1": (5, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (2, 256, 84), "Q3_K": (3, 256, 110), "Q4_K": (4, 256, 144), "Q5_K": (5, 256, 176), "Q6_K": (6, 256, 210),
    "IQ1_S": (1, 256, 50, 32768), "IQ1_M": (1, 256, 56, 32768), "IQ2_XXS": (2, 256, 66, 3072),
    "IQ2_XS": (2, 256, 74, 5120), "IQ2_S": (2, 256, 82, 10240), "IQ3_XXS": (3, 256, 98, 2048),
    "IQ3_S": (3, 256, 110, 4096), "IQ4_NL": (4, 32, 18, 16), "IQ4_XS": (4, 256, 136, 16), "TQ1_0": (1, 256, 54),
    "TQ2_0": (2, 256, 66), "MXFP4": (4, 32, 17, 16), "F16": (16, 1, 2)}.items()}
"""By GGML's name."""


class Tiles(NamedTuple):
    """EXL3's codebook, and the bits of two weights: an odd number only with ``mul1``."""

    codebook: str
    half_bits: int


STRIP = 128
"""Outputs, and inputs, that EXL3 rotates together; it pads both to a multiple."""
CODEBOOKS: Mapping[str, int] = {"mul1": 0x83DCD12D, "mcg": 0xCBAC1FED, "3inst": 89226354}
"""Of EXL3, with the number that each multiplies a state by."""
EXL3: Mapping[str, Tiles] = {f"exl3-{codebook}-{half_bits / 2:g}": Tiles(codebook, half_bits) for codebook in CODEBOOKS
                             for half_bits in range(2, 17, 1 if codebook == "mul1" else 2)}
"""By codebook and bits."""
STORED_FORMATS: Mapping[str, StorageFormat] = {f.name: f for f in (
    *(StorageFormat(name, BACKEND, kind.bits, kind.weights) for name, kind in TYPES.items()),
    *(StorageFormat(f"gidx{bits}-g{group}", ORDERED, bits, group) for bits in (2, 3, 4, 8) for group in (32, 64, 128)),
    *(StorageFormat(name, TILES, -(-tiles.half_bits // 2), 0) for name, tiles in EXL3.items()),
    *(StorageFormat(f"{kind}{bits}", backend, bits, 0) for kind, backend in ((STORED, BACKEND), (OTHER, OTHER))
      for bits in range(1, 17)))}
"""GGML's types, ``int`` formats whose groups are of columns in any order (``g_idx`` of GPTQ), EXL3's, and the formats
of units (``memory.stored``), by name. A search may name those in ``formats.FORMATS`` alone, some of EXL3's."""


def in_strips(side: int) -> int:
    """Return a side of a matrix as EXL3 pads it."""
    return -(-side // STRIP) * STRIP
