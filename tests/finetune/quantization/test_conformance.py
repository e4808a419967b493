"""Every backend against the shared suite."""

from tests.conformance.quantizer import QuantizerConformance


class TestBitsAndBytes(QuantizerConformance):
    formats = ("nf4", "nf4-nodq", "int8")


class TestHQQ(QuantizerConformance):
    formats = ("hqq2", "hqq3", "hqq4", "hqq8", "hqq5", "hqq6", "hqq3-g32", "hqq4-g128", "hqq5-g32")


class TestReference(QuantizerConformance):
    formats = ("ref2", "ref3", "ref4", "ref8")


class TestUnquantised(QuantizerConformance):
    formats = ("fp16",)
