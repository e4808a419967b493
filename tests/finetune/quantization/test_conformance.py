"""Every backend against the shared suite."""

from qra_bo.memory.formats import PLANES, WIDTHS
from tests.conformance.quantizer import QuantizerConformance


class TestBitsAndBytes(QuantizerConformance):
    formats = ("nf4", "nf4-nodq", "int8")


class TestHQQ(QuantizerConformance):
    formats = (*(f"hqq{bits}" for bits in PLANES["hqq"]), "hqq3-g32", "hqq4-g128", "hqq5-g32")


class TestInteger(QuantizerConformance):
    formats = tuple(f"{kind}{bits}-g{(32, 64, 128)[i % 3]}" for i, (bits, width) in enumerate(WIDTHS.items())
                    for kind in ("sym", "int") if kind in width.kinds)


class TestTrellis(QuantizerConformance):
    formats = tuple(f"t{bits}" for bits, width in WIDTHS.items() if "t" in width.kinds)


class TestUnquantised(QuantizerConformance):
    formats = ("fp16",)
