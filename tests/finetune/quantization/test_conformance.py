"""Every backend against the shared suite."""

from tests.conformance.quantizer import QuantizerConformance


class TestBitsAndBytes(QuantizerConformance):
    formats = ("nf4", "nf4-nodq", "int8")


class TestHQQ(QuantizerConformance):
    formats = ("hqq2", "hqq3", "hqq4", "hqq8", "hqq5", "hqq6", "hqq3-g32", "hqq4-g128", "hqq5-g32")


class TestInteger(QuantizerConformance):
    formats = ("sym2-g64", "sym3-g64", "sym4-g32", "sym5-g64", "sym6-g128", "sym8-g64", "int2-g64", "int3-g32",
               "int4-g128", "int8-g64")


class TestReference(QuantizerConformance):
    formats = ("ref2", "ref3", "ref4", "ref8")


class TestUnquantised(QuantizerConformance):
    formats = ("fp16",)
