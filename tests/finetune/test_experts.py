"""Mixtures of experts: unfused linears against transformers' own stacks."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from qra_bo.finetune.adapters.lora import adapter_parameters, attach
from qra_bo.finetune.models.experts import Experts, fuse, pooled, unfuse
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.grouped import GroupedLinear
from qra_bo.finetune.quantization.moments import each_moments, shrink
from qra_bo.memory.formats import parse_format
from qra_bo.space.decoder import MIXTURES, spec_from_model, with_adapters

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, head_dim=16, vocab_size=97, pad_token_id=0, num_experts_per_tok=2)


def tiny_mixture(family: str, experts: int = 6, **changes: Any) -> Any:
    """A frozen random mixture as transformers makes it, far enough from zero that the router prefers some experts."""
    count = "num_local_experts" if family == "mixtral" else "num_experts"
    width = {"moe_intermediate_size": 32} if family == "qwen3_moe" else {}
    config = AutoConfig.for_model(family, **{**SIZES, **width, count: experts, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.1)
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


IDS = torch.randint(1, 97, (2, 24), generator=torch.Generator().manual_seed(1))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float(((one - other).norm() / other.norm()).detach()) < 1e-5


@pytest.mark.parametrize("family", MIXTURES)
def test_unfused_experts_equal_the_eager_stack(family: str) -> None:
    one, other = tiny_mixture(family), tiny_mixture(family)
    other.set_experts_implementation("eager")
    spec = spec_from_model(one)
    unfuse(one)
    assert spec == spec_from_model(one)
    assert spec.n_experts == 6
    assert sum(linear.expert for linear in spec.linears) == 2 * 2 * 6
    gradients = []
    for model in (one, other):
        embeddings = model.get_input_embeddings()(IDS).requires_grad_(True)
        model(inputs_embeds=embeddings, labels=IDS).loss.backward()
        gradients.append(embeddings.grad)
    assert torch.equal(one(IDS).logits, other(IDS).logits)
    assert close(*gradients)


def ranks_of(model: Any, experts: str) -> dict[str, int]:
    return {m.name: 4 * m.adapted for m in with_adapters(spec_from_model(model), experts).linears}


@pytest.mark.parametrize("experts", ["none", "each"])
@pytest.mark.parametrize("family", MIXTURES)
def test_packed_experts_train_as_on_the_unpacked_weights(family: str, experts: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    model, dense = tiny_mixture(family), tiny_mixture(family)
    unfuse(model)
    spec = spec_from_model(model)
    bank = LayerBank(model, spec, (parse_format("sym3-g32"),), torch.float32, "cpu")
    bank.install({linear.name: "sym3-g32" for linear in spec.linears})
    unfuse(dense)
    for linear in spec.linears:
        dense.get_submodule(linear.name).weight.data = model.get_submodule(linear.name).unpack()
    fuse(dense)
    dense.set_experts_implementation("eager")
    assert close(model(IDS).logits, dense(IDS).logits)

    alive, unpack, most = list[Any](), GroupedLinear.unpack, 0

    def counted(layer: Any) -> torch.Tensor:
        nonlocal most
        weight = unpack(layer)
        alive.append(weakref.ref(weight))
        most = max(most, sum(ref() is not None for ref in alive))
        return weight

    unfuse(dense)
    monkeypatch.setattr(GroupedLinear, "unpack", counted)
    gradients = []
    for one in (model, dense):  # the second by plain autograd of PEFT's layers
        attach(one, ranks_of(one, experts), 2.0, 0, torch.float32)
        pairs = adapter_parameters(one)
        for index, pair in enumerate(pairs.values()):
            pair["B"].data.normal_(std=0.02, generator=torch.Generator().manual_seed(index))
        one(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({f"{name}.{key}": p.grad for name, pair in pairs.items() for key, p in pair.items()})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * 2 * (4 if experts == "none" else 16)
    reached = [key for key, gradient in gradients[1].items() if gradient is not None]
    assert len(reached) > len(gradients[1]) / 2
    assert all(close(gradients[0][key], gradients[1][key]) for key in reached)
    assert all(gradients[0][key] is None for key in gradients[1].keys() - set(reached))
    assert most == 1


def test_peft_loads_an_adapter_of_attention_on_the_stacks(tmp_path: Path) -> None:
    model, plain = tiny_mixture("qwen3_moe"), tiny_mixture("qwen3_moe")
    plain.set_experts_implementation("eager")
    unfuse(model)
    wrapped = attach(model, ranks_of(model, "none"), 2.0, 0, torch.float32)
    for pair in adapter_parameters(model).values():
        pair["B"].data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    assert close(loaded(IDS).logits, model(IDS).logits)


def test_fused_again_it_is_the_same_model() -> None:
    model, other = tiny_mixture("qwen3_moe"), tiny_mixture("qwen3_moe")
    unfuse(model)
    fuse(model)
    found, wanted = model.state_dict(), other.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not any(isinstance(module, Experts) for module in model.modules())


def test_moments_of_an_expert_are_those_of_its_tokens_and_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.finetune.quantization.moments.ALIKE", 0.1)  # correlations stay in part
    model = tiny_mixture("qwen3_moe", experts=24)
    unfuse(model)
    ids, is_text = IDS.clone(), torch.ones(2, 24, dtype=torch.bool)
    is_text[0, 5:] = False
    names = [linear.name for linear in spec_from_model(model).linears if linear.layer == 1]
    found: dict[str, torch.Tensor] = {}
    each_moments(model, names, ids, torch.device("cpu"),
                 lambda sharing, moments: found.update(dict.fromkeys(sharing, moments)), is_text)
    assert found.keys() == set(names)
    inputs: dict[str, list[Any]] = {}
    experts: Any = model.get_submodule("model.layers.1.mlp.experts")
    handle = experts.register_forward_pre_hook(lambda _module, args: inputs.update(all=list(args)))
    model(ids)
    handle.remove()
    hidden, chosen, _ = inputs["all"]
    text = is_text.flatten()
    rows = [hidden[text & (chosen == index).any(dim=1)] for index in range(24)]
    assert 0 in map(len, rows)
    assert max(map(len, rows)) > 2
    together = torch.cat(rows)
    mean = together.T @ together / len(together)
    for index in range(24):
        own = rows[index].T @ rows[index] + (64 - len(rows[index])) * mean
        assert close(found[f"model.layers.1.mlp.experts.{index}.gate_up"], shrink(own, len(together)))


def test_an_expert_of_many_tokens_needs_no_others() -> None:
    moments = {"a.experts.0.down": torch.eye(2), "a.experts.1.down": 3 * torch.eye(2)}
    enough, few = pooled(["a.experts.0.down", "a.experts.1.down"], dict(moments),
                         {"a.experts.0.down": 2, "a.experts.1.down": 1})
    assert enough[::2] == ("a.experts.0.down", 2)
    assert torch.equal(enough[1], torch.eye(2))
    assert few[::2] == ("a.experts.1.down", 3)
    assert close(few[1], (3 + 4 / 3) * torch.eye(2))
