"""Decoder shapes: linear layers that may be quantised and adapted; from numbers, a configuration or a model."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qra_bo.utils.errors import ModelError


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of the decoder stack.

    Args:
        name: Module path within the model, e.g. ``"model.layers.3.self_attn.q_proj"``.
        out_features: Rows of the weight; ``in_features``: columns.
        layer: Index of its decoder layer.
        group: ``"attn"`` or ``"mlp"`` (granularity ``block``).
        fused: Projections that share an input: ``"qkv"``, ``"o"``, ``"gateup"``, ``"down"`` (granularity ``fused``).
        bias: Whether it has a bias (kept in 16 bits, never trained).
        stored: Its format in a file whose codes are trained on (``memory.stored``); empty elsewhere.
    """

    name: str
    out_features: int
    in_features: int
    layer: int
    group: str
    fused: str
    bias: bool = False
    stored: str = ""

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The facts of a decoder that memory and search need, without its weights.

    Args:
        family: ``model_type`` of transformers, e.g. ``"llama"``.
        linears: Linear layers of the decoder stack in module order (``lm_head`` is not one of them).
        n_layers: Number of decoder layers.
        hidden_size: Width of the residual stream; ``intermediate_size``: of the MLP.
        n_heads: Query heads; ``n_kv_heads``: key and value heads, of width ``head_dim`` each.
        vocab_size: Rows of the embedding and of the head.
        tied: Whether the head shares the embedding's weight.
        other_numel: Parameters outside ``linears`` with tied ones counted once: embeddings, head, norms, biases.
        tables: GGML's types of the embedding and of a head of its own in a GGUF file; empty elsewhere.
    """

    name: str
    family: str
    linears: tuple[Linear, ...]
    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    other_numel: int
    tables: tuple[str, ...] = ()

    @property
    def linear_numel(self) -> int:
        return sum(linear.numel for linear in self.linears)


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox")
"""Families whose spec follows from numbers alone; others need their transformers configuration."""

MOST_LAYERS = 10_000
"""More are a mistake, and would be listed for hours."""
OWN_CODE = "comes with code of its own, and that runs only where you say so: model.trust_remote_code=true"

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "qkv_proj": "qkv", "query_key_value": "qkv",
          "o_proj": "o", "out_proj": "o", "dense": "o",
          "gate_proj": "gateup", "up_proj": "gateup", "gate_up_proj": "gateup", "dense_h_to_4h": "gateup",
          "fc1": "gateup", "c_fc": "gateup", "down_proj": "down", "dense_4h_to_h": "down", "fc2": "down"}
_SIZES = {"head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"}


def fused_of(leaf: str) -> str:
    """Return what a linear's own name says that it shares its input with: ``"qkv"`` of ``"q_proj"``."""
    return _FUSED.get(leaf, leaf)


def spec_from_numbers(name: str, family: str, *, n_layers: int, hidden_size: int, intermediate_size: int,
                      n_heads: int, n_kv_heads: int, head_dim: int, vocab_size: int, tied: bool,
                      attention_bias: bool = False) -> DecoderSpec:
    """Return the decoder that these numbers (see ``DecoderSpec``) describe; needs neither torch nor a download.

    The family is one of ``FAMILIES``; with ``attention_bias`` the attention's projections have biases (qwen2: q, k and
    v alone). Raises ``ModelError`` if the family is unknown or a number makes no sense.
    """
    if family not in FAMILIES:
        raise ModelError(f"the shapes of family {family!r} do not follow from numbers alone; known: "
                         f"{', '.join(FAMILIES)}; any other decoder works with +model=hf model.path=ORG/NAME-or-folder")
    sizes = {"n_layers": n_layers, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
             "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "vocab_size": vocab_size}
    if min(sizes.values()) <= 0 or n_heads % n_kv_heads or n_layers > MOST_LAYERS:
        raise ModelError(f"model {name!r}: every size must be positive, n_layers at most {MOST_LAYERS}, and n_kv_heads "
                         f"must divide n_heads; got {sizes}")
    prefix = "gpt_neox.layers" if family == "gpt_neox" else "model.layers"
    linears = tuple(Linear(f"{prefix}.{layer}.{path}", out, inn, layer, group, fused_of(path.split(".")[-1]), bias)
                    for layer in range(n_layers)
                    for path, out, inn, group, bias in _shapes(family, hidden_size, intermediate_size, n_heads,
                                                               n_kv_heads, head_dim, attention_bias))
    biases = sum(linear.out_features for linear in linears if linear.bias)
    embeddings = vocab_size * hidden_size * (1 if tied else 2)
    per_norm = 2 * hidden_size if family == "gpt_neox" else hidden_size  # LayerNorm has a bias
    norms = n_layers * (4 if family in ("gemma2", "gemma3_text") else 2) + 1
    head_norms = n_layers * 2 * head_dim if family in ("qwen3", "gemma3_text") else 0
    other = embeddings + biases + norms * per_norm + head_norms
    return DecoderSpec(name, family, linears, n_layers, hidden_size, intermediate_size, n_heads, n_kv_heads, head_dim,
                       vocab_size, tied, other)


def _shapes(family: str, d: int, i: int, heads: int, kv_heads: int, head_dim: int,
            bias: bool) -> Iterator[tuple[str, int, int, str, bool]]:
    """Path, out, in, group and bias of every linear of one layer, in module order."""
    q, kv = heads * head_dim, kv_heads * head_dim
    if family == "gpt_neox":
        yield "attention.query_key_value", 3 * q, d, "attn", bias
        yield "attention.dense", d, q, "attn", bias
        yield "mlp.dense_h_to_4h", i, d, "mlp", True
        yield "mlp.dense_4h_to_h", d, i, "mlp", True
    elif family == "phi3":
        yield "self_attn.o_proj", d, q, "attn", False
        yield "self_attn.qkv_proj", q + 2 * kv, d, "attn", False
        yield "mlp.gate_up_proj", 2 * i, d, "mlp", False
        yield "mlp.down_proj", d, i, "mlp", False
    else:
        yield "self_attn.q_proj", q, d, "attn", bias
        yield "self_attn.k_proj", kv, d, "attn", bias
        yield "self_attn.v_proj", kv, d, "attn", bias
        yield "self_attn.o_proj", d, q, "attn", bias and family != "qwen2"
        yield "mlp.gate_proj", i, d, "mlp", False
        yield "mlp.up_proj", i, d, "mlp", False
        yield "mlp.down_proj", d, i, "mlp", False


def spec_from_model(model: Any, name: str | None = None) -> DecoderSpec:
    """Return the decoder of a causal language model of transformers, on any device, also the meta device.

    It is not wrapped by PEFT yet; linears may already be quantised modules with ``in_features``. The name is used in
    messages. Raises ``ModelError`` if the model has no decoder layers with linear modules, or layers that are not those
    of a dense decoder of text.
    """
    from torch import nn  # planning memory does without torch
    config = model.config.get_text_config()
    _check_dense(model)
    linears: list[Linear] = []
    for path, module in model.named_modules():
        match = _LAYER.search(path)
        if match is None or not isinstance(module, nn.Linear):
            continue
        group = "attn" if re.search(r"attn|attention", path) else "mlp"
        leaf = path.rsplit(".", 1)[-1]
        linears.append(Linear(path, module.out_features, module.in_features, int(match.group(1)), group,
                              fused_of(leaf), module.bias is not None))
    if not linears:
        raise ModelError(f"{config.model_type!r} has no decoder layers with linear modules that can be quantised; "
                         "expected a decoder-only model such as Llama, Qwen or Mistral")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    inside = {id(model.get_submodule(linear.name).weight) for linear in linears}
    other = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = getattr(config, "intermediate_size", None)  # OPT, GPT-J, Falcon and others have another name for it
    if width is None:
        width = max(linear.in_features for linear in linears if linear.group == "mlp")
    return DecoderSpec(name or config.model_type, config.model_type, tuple(linears),
                       len({linear.layer for linear in linears}), config.hidden_size, width, heads,
                       getattr(config, "num_key_value_heads", None) or heads, head_dim, embedding.shape[0],
                       head is not None and head.weight is embedding, other)


def _check_dense(model: Any) -> None:
    """Refuse layers that the memory model and the adapters do not cover; ``ModelError`` says which.

    A configuration of layers that differ in size has no value of that size, and transformers raises where it is read.

    Experts are no linear modules: they would stay in 16 bits, and be most of the model. Layers of a vision part would
    be quantised and adapted, and take no gradient from a text.
    """
    kind = model.config.model_type
    if unlike := sorted(_SIZES & set(getattr(model.config.get_text_config(), "per_layer_attributes", None) or ())):
        raise ModelError(f"{kind!r} has layers that differ in {', '.join(unlike)}, which the memory model does not "
                         "cover; expected a decoder of like layers such as Llama, Qwen or Mistral")
    layers = [path for path, _ in model.named_modules() if _LAYER.search(path)]
    experts = next((path for path in layers if path.endswith(".experts")), None)
    if experts is not None:
        raise ModelError(f"{kind!r} has layers of experts ({experts}), whose weights can't be quantised one by one "
                         "here; expected a dense decoder such as Llama, Qwen or Mistral")
    decoder = {id(module) for module in model.get_decoder().modules()}
    outside = next((path for path in layers if id(model.get_submodule(path)) not in decoder), None)
    if outside is not None:
        raise ModelError(f"{kind!r} has layers outside its text decoder ({outside}), as models with a vision or audio "
                         "part have; they are loaded without that part only where transformers has a causal language "
                         "model for their text_config. Give a model of text alone")


def spec_from_hf_config(config: Any, name: str | None = None, *, trust_remote_code: bool = False) -> DecoderSpec:
    """Return the decoder that a transformers configuration describes; the model is built on the meta device.

    Code that comes with the model runs only with ``trust_remote_code``, which is passed on always, because
    transformers asks on the terminal otherwise. Raises ``ModelError`` if transformers knows no causal language model of
    that type.
    """
    import torch  # planning memory does without torch
    from transformers import AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{name or config.model_type!r} {OWN_CODE}") from error
        reason = "transformers has none" if "Unrecognized configuration class" in str(error) else str(error)[:200]
        raise ModelError(f"no causal language model can be built of a {config.model_type!r} configuration ({reason}): "
                         "it is not trained here; give a decoder of text alone such as Llama, Qwen or Mistral"
                         ) from error
    return spec_from_model(model, name)
