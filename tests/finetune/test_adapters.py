import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.finetune.adapters.lora import adapter_parameters, attach, check_realised, detach, lora_layers
from qra_bo.utils.errors import ContractError
from tests.finetune.models import tiny_llama

MODEL, SPEC = tiny_llama()
NAMES = [linear.name for linear in SPEC.linears]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=len(NAMES), max_size=len(NAMES)).filter(any))
def test_every_module_gets_the_rank_it_was_given(ranks: list[int]) -> None:
    wanted = dict(zip(NAMES, ranks, strict=True))
    before = MODEL(input_ids=torch.arange(8)[None]).logits
    attach(MODEL, wanted, 2.0, 0, torch.float32)
    try:
        realised = {n: layer.r["default"] for n, layer in lora_layers(MODEL).items()}
        assert realised == {n: r for n, r in wanted.items() if r}
        assert torch.equal(MODEL(input_ids=torch.arange(8)[None]).logits, before)  # B = 0: no change at the start
    finally:
        detach(MODEL)
    assert not lora_layers(MODEL)
    assert torch.equal(MODEL(input_ids=torch.arange(8)[None]).logits, before)


def _downs(ranks: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    attach(MODEL, ranks, 2.0, seed, torch.float32)
    downs = {name: pair["A"].detach().clone() for name, pair in adapter_parameters(MODEL).items()}
    detach(MODEL)
    return downs


def test_initialisation_is_rank_nested_and_seeded() -> None:
    small, large = _downs(dict.fromkeys(NAMES, 2), 5), _downs(dict.fromkeys(NAMES, 6), 5)
    other = _downs(dict.fromkeys(NAMES, 2), 6)
    for name in NAMES:
        assert torch.equal(large[name][:2], small[name])
        assert not torch.equal(other[name], small[name])
        assert float(large[name].abs().max()) <= large[name].shape[1] ** -0.5
    state = torch.random.get_rng_state()
    _downs(dict.fromkeys(NAMES, 2), 5)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone


def test_what_was_not_realised_is_refused() -> None:
    attach(MODEL, dict.fromkeys(NAMES, 2), 2.0, 0, torch.float32)
    try:
        with pytest.raises(ContractError, match="requested rank 3"):
            check_realised(MODEL, {**dict.fromkeys(NAMES, 2), NAMES[0]: 3}, 2.0)
        with pytest.raises(ContractError, match="realised on"):
            check_realised(MODEL, {n: 2 for n in NAMES[1:]}, 2.0)
    finally:
        detach(MODEL)
