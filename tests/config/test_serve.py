"""``serve``: formats that come with a consumer, and what it does not load."""

import pytest

from qra_bo.config import load_config
from qra_bo.memory.serving import ANY, CONSUMERS
from qra_bo.utils.errors import ConfigError


@pytest.mark.parametrize("serve", [name for name in CONSUMERS if name != ANY])
def test_a_consumer_brings_its_formats(serve: str) -> None:
    formats = [CONSUMERS[serve].default_format(bits) for bits in CONSUMERS[serve].widths]
    config = load_config([f"serve={serve}", f"bits={[fmt.bits for fmt in formats]}".replace(" ", "")])
    assert config.serve == serve
    assert config.format_names == tuple(fmt.name for fmt in formats)


def test_formats_that_the_consumer_loads_may_be_chosen() -> None:
    config = load_config(["+serve=mlx", "quantizer.formats.3=[sym3-g128,int3-g64]"])
    assert config.format_names == ("sym2-g64", "sym3-g128", "int3-g64", "sym4-g64", "sym8-g64")


@pytest.mark.parametrize(("overrides", "parts"), [
    (["serve=mlx", "quantizer.formats.4=[nf4,int4-g64]", "quantizer.formats.8=[int8]"],
     ["MLX", "the formats nf4, int4-g64, int8 of quantizer.formats", "leave quantizer.formats out", "sym4", "int3"]),
    (["serve=vllm", "granularity=module", "quantizer.formats.3=[hqq3]"],
     ["hqq3", "granularity=module", "use granularity=layer or block or fused"]),
    (["serve=llamacpp", "+model.family=gpt_neox"], ["llama.cpp", "family gpt_neox", "llama, mistral"])])
def test_what_the_consumer_does_not_load_is_named_at_once(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    message = str(caught.value)
    assert message.count("serve=" + overrides[0].removeprefix("serve=") + " searches only") == 1
    assert all(part in message for part in parts)
