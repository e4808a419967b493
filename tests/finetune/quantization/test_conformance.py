"""Every backend against the shared suite: some formats of each always, one of every kind and width when slow."""

from qra_bo.memory.formats import BACKENDS, FORMATS, WIDTHS
from tests.conformance.quantizer import QuantizerConformance


def others(kind: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """One format of every width of a kind, without those whose width is among ``chosen``."""
    given = {name.partition("-")[0] for name in chosen}
    return tuple(f"{kind}{bits}-g64" for bits, width in WIDTHS.items()
                 if kind in width.kinds and f"{kind}{bits}" not in given)


class TestBitsAndBytes(QuantizerConformance):
    formats = ("nf4", "nf4-nodq", "int8")


class TestHQQ(QuantizerConformance):
    formats = ("hqq3", "hqq4-g128", "hqq5-g32")
    slow_formats = ("hqq3-g32", *(f"hqq{bits}" for bits in BACKENDS["hqq"].planes if bits != 3))


class TestInteger(QuantizerConformance):
    formats = ("sym2-g32", "sym4-g64", "sym5-g128", "sym8-g32", "int2-g64", "int3-g128")
    slow_formats = others("sym", formats) + others("int", formats)


class TestTrellis(QuantizerConformance):
    formats = ("t1", "t3")
    slow_formats = ("t2", "t4")


class TestExl3(QuantizerConformance):
    formats = ()
    slow_formats = ("exl3-mul1-2", "exl3-mul1-3", "exl3-mul1-4")
    on_constants = 4.0  # rotated on both sides they are products of two normal numbers, and an output has one scale


class TestUnquantised(QuantizerConformance):
    formats = ("fp16",)


def test_every_format_joins_a_suite() -> None:
    """Another group size of a kind and width has the suite of the first."""
    joined = {name.partition("-g")[0] for suite in QuantizerConformance.__subclasses__()
              for name in (*suite.formats, *suite.slow_formats)}
    missing = [name for name in FORMATS if name.partition("-g")[0] not in joined]
    assert not missing, f"add 'class TestX(QuantizerConformance): formats = {tuple(missing)}' to this file: no suite " \
                        "here tests these formats"
