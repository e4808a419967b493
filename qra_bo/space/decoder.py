"""Decoder shapes: linear layers that may be quantised and adapted; from numbers, a configuration or a model."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
        stored: Its formats in files whose codes are trained on, by format of units (``memory.stored``); else empty.
        expert: Whether it is one of an expert: a part of the tokens reaches it.
        adapted: Whether it takes an adapter of its unit's rank.
    """

    name: str
    out_features: int
    in_features: int
    layer: int
    group: str
    fused: str
    bias: bool = False
    stored: tuple[tuple[str, str], ...] = ()
    expert: bool = False
    adapted: bool = True

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
        hidden_size: Width of the residual stream; ``intermediate_size``: of the MLP, or of each expert.
        n_heads: Query heads; ``n_kv_heads``: key and value heads, of width ``head_dim`` each.
        vocab_size: Rows of the embedding and of the head.
        tied: Whether the head shares the embedding's weight.
        other_numel: Parameters outside ``linears`` with tied ones counted once: embeddings, head, norms, biases.
        tables: GGML's types of the embedding and of a head of its own in a GGUF file; empty elsewhere.
        n_experts: Experts of every layer, of which a router chooses ``experts_per_token`` for a token; 0 without.
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
    n_experts: int = 0
    experts_per_token: int = 0

    @property
    def linear_numel(self) -> int:
        return sum(linear.numel for linear in self.linears)

    @property
    def active_numel(self) -> int:
        """Weights of the linears that a token meets: of experts those that are chosen for it."""
        experts = sum(linear.numel for linear in self.linears if linear.expert)
        return self.linear_numel - experts + (experts * self.experts_per_token // self.n_experts if experts else 0)


MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
"""Families of mixtures of experts that are trained here: every layer has experts, and their router chooses by softmax.
Each expert is two linears: ``gate_up``, which PEFT's own rules for experts do not rename, and ``down``."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox",
            "seed_oss", "smollm3", *MIXTURES)
"""Families whose spec follows from numbers alone; others need their transformers configuration."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names of the number of experts in configurations of transformers."""
MOST_LAYERS, MOST_EXPERTS = 10_000, 1024
"""More are a mistake, and would be listed for hours."""
MOST_SIZE = 2**20
"""Of widths, heads and rows in a configuration: products of three are bytes that torch can count."""
OWN_CODE = "comes with code of its own, and that runs only where you say so: model.trust_remote_code=true"

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "qkv_proj": "qkv", "query_key_value": "qkv",
          "o_proj": "o", "out_proj": "o", "dense": "o",
          "gate_proj": "gateup", "up_proj": "gateup", "gate_up_proj": "gateup", "dense_h_to_4h": "gateup",
          "fc1": "gateup", "c_fc": "gateup", "gate_up": "gateup",
          "down": "down", "down_proj": "down", "dense_4h_to_h": "down", "fc2": "down"}
_SIZES = {"head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
          "num_hidden_layers", "vocab_size"}


def fused_of(leaf: str) -> str:
    """Return what a linear's own name says that it shares its input with: ``"qkv"`` of ``"q_proj"``."""
    return _FUSED.get(leaf, leaf)


def expert_of(path: str) -> int | None:
    """Return the index of the expert that a path is within; ``None`` outside of mixtures."""
    match = _EXPERT.search(path)
    return None if match is None else int(match.group(1))


def stack_of(name: str) -> str:
    """Return the stack of an expert's linear, ``"...experts.down"`` of ``"...experts.7.down"``; else ``name``."""
    return _EXPERT.sub(".experts.", name)


def with_adapters(spec: DecoderSpec, experts: str) -> DecoderSpec:
    """Return ``spec`` with adapters on ``"each"`` expert's linears, or on ``"none"``."""
    return replace(spec, linears=tuple(replace(m, adapted=experts == "each" or not m.expert) for m in spec.linears))


def spec_from_numbers(name: str, family: str, *, n_layers: int, hidden_size: int, intermediate_size: int,
                      n_heads: int, n_kv_heads: int, head_dim: int, vocab_size: int, tied: bool,
                      attention_bias: bool = False, n_experts: int = 0, experts_per_token: int = 0) -> DecoderSpec:
    """Return the decoder that these numbers (see ``DecoderSpec``) describe; needs neither torch nor a download.

    The family is one of ``FAMILIES``; with ``attention_bias`` the attention's projections have biases (of qwen2 and
    seed_oss q, k and v alone). Raises ``ModelError`` if the family is unknown or a number makes no sense.
    """
    if family not in FAMILIES:
        raise ModelError(f"the shapes of family {family!r} do not follow from numbers alone; known: "
                         f"{', '.join(FAMILIES)}; any other decoder works with +model=hf model.path=ORG/NAME-or-folder")
    sizes = {"n_layers": n_layers, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
             "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim, "vocab_size": vocab_size}
    if (family in MIXTURES) != (n_experts > 0) or not 0 <= experts_per_token <= n_experts \
            or bool(n_experts) != bool(experts_per_token):
        raise ModelError(f"model {name!r}: n_experts and experts_per_token, at most as many, belong to the families "
                         f"{', '.join(MIXTURES)} alone; got {n_experts} and {experts_per_token} of family {family!r}")
    if min(sizes.values()) <= 0 or n_heads % n_kv_heads or n_layers > MOST_LAYERS or n_experts > MOST_EXPERTS:
        raise ModelError(f"model {name!r}: every size must be positive, n_layers at most {MOST_LAYERS}, n_experts at "
                         f"most {MOST_EXPERTS}, and n_kv_heads must divide n_heads; got {sizes}")
    prefix = "gpt_neox.layers" if family == "gpt_neox" else "model.layers"
    linears = tuple(_linear(f"{prefix}.{layer}.{path}", out, inn, bias) for layer in range(n_layers)
                    for path, out, inn, bias in _shapes(family, hidden_size, intermediate_size, n_heads, n_kv_heads,
                                                        head_dim, attention_bias, n_experts))
    biases = sum(linear.out_features for linear in linears if linear.bias)
    embeddings = vocab_size * hidden_size * (1 if tied else 2)
    per_norm = 2 * hidden_size if family == "gpt_neox" else hidden_size  # LayerNorm has a bias
    norms = n_layers * (4 if family in ("gemma2", "gemma3_text") else 2) + 1
    head_norms = n_layers * 2 * head_dim if family in ("qwen3", "qwen3_moe", "gemma3_text") else 0
    if family == "olmoe":  # one norm over all heads
        head_norms = n_layers * (hidden_size + hidden_size // n_heads * n_kv_heads)
    other = embeddings + biases + norms * per_norm + head_norms + n_layers * n_experts * hidden_size
    return DecoderSpec(name, family, linears, n_layers, hidden_size, intermediate_size, n_heads, n_kv_heads, head_dim,
                       vocab_size, tied, other, (), n_experts, experts_per_token)


def _linear(path: str, out_features: int, in_features: int, bias: bool) -> Linear:
    """Return the linear at a path within a decoder layer, which says all else about it."""
    return Linear(path, out_features, in_features, int(_LAYER.findall(path)[0]),
                  "attn" if re.search(r"attn|attention", path) else "mlp", fused_of(path.rsplit(".", 1)[-1]), bias,
                  expert=expert_of(path) is not None)


def _shapes(family: str, d: int, i: int, heads: int, kv_heads: int, head_dim: int, bias: bool,
            experts: int) -> Iterator[tuple[str, int, int, bool]]:
    """Path, out, in and bias of every linear of one layer, in module order."""
    q, kv = heads * head_dim, kv_heads * head_dim
    if family == "gpt_neox":
        yield "attention.query_key_value", 3 * q, d, bias
        yield "attention.dense", d, q, bias
        yield "mlp.dense_h_to_4h", i, d, True
        yield "mlp.dense_4h_to_h", d, i, True
    elif family == "phi3":
        yield "self_attn.o_proj", d, q, False
        yield "self_attn.qkv_proj", q + 2 * kv, d, False
        yield "mlp.gate_up_proj", 2 * i, d, False
        yield "mlp.down_proj", d, i, False
    else:
        yield "self_attn.q_proj", q, d, bias
        yield "self_attn.k_proj", kv, d, bias
        yield "self_attn.v_proj", kv, d, bias
        yield "self_attn.o_proj", d, q, bias and family not in ("qwen2", "seed_oss")
        if experts:
            for e in range(experts):
                yield f"mlp.experts.{e}.gate_up", 2 * i, d, False
                yield f"mlp.experts.{e}.down", d, i, False
            return
        yield "mlp.gate_proj", i, d, False
        yield "mlp.up_proj", i, d, False
        yield "mlp.down_proj", d, i, False


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
    inside: set[int] = set()
    for path, module in model.named_modules():
        if _LAYER.search(path) is None:
            continue
        if isinstance(module, nn.Linear):
            linears.append(_linear(path, module.out_features, module.in_features, module.bias is not None))
            inside.add(id(module.weight))
        elif is_stack(module):
            stacks = {"gate_up": module.gate_up_proj, "down": module.down_proj}
            linears += [_linear(f"{path}.{e}.{leaf}", weight.shape[1], weight.shape[2], False)
                        for e in range(module.num_experts) for leaf, weight in stacks.items()]
            inside |= {id(weight) for weight in stacks.values()}
    if not linears:
        raise ModelError(f"{config.model_type!r} has no decoder layers with linear modules that can be quantised; "
                         "expected a decoder-only model such as Llama, Qwen or Mistral")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    other = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = getattr(config, "intermediate_size", None)  # OPT, GPT-J, Falcon and others have another name for it
    experts = sum(linear.expert for linear in linears if linear.layer == linears[0].layer) // 2
    if experts:
        width = next(linear.in_features for linear in linears if linear.expert and linear.fused == "down")
    if width is None:
        width = max(linear.in_features for linear in linears if linear.group == "mlp")
    return DecoderSpec(name or config.model_type, config.model_type, tuple(linears),
                       len({linear.layer for linear in linears}), config.hidden_size, width, heads,
                       getattr(config, "num_key_value_heads", None) or heads, head_dim, embedding.shape[0],
                       head is not None and head.weight is embedding, other, (), experts,
                       config.num_experts_per_tok if experts else 0)


def is_stack(module: Any) -> bool:
    """Whether a module holds the weights of a layer's experts, ``experts x out x in``, as transformers loads them."""
    return getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3


def check_mixture(text: Any, layers: Sequence[str] = ()) -> None:
    """Raise ``ModelError`` if a configuration names experts, or ``layers`` are some, of a family not trained here."""
    if text.model_type not in MIXTURES and any((*layers, *(getattr(text, key, None) for key in EXPERT_COUNTS))):
        raise ModelError(f"{text.model_type!r} has layers of experts that are not trained here, in 16 bits or fewer; "
                         f"take one of the families {', '.join(MIXTURES)}, or a dense decoder such as Llama or Qwen")


def _check_dense(model: Any) -> None:
    """Refuse layers that the memory model and the adapters do not cover; ``ModelError`` says which.

    A configuration of layers that differ in size has no value of that size, and transformers raises where it is read.

    Experts of other families have biases, scales or gates that ``models.experts`` does not compute. Layers of a vision
    part would be quantised and adapted, and take no gradient from a text.
    """
    kind = model.config.model_type
    if unlike := sorted(_SIZES & set(getattr(model.config.get_text_config(), "per_layer_attributes", None) or ())):
        raise ModelError(f"{kind!r} has layers that differ in {', '.join(unlike)}, which the memory model does not "
                         "cover; expected a decoder of like layers such as Llama, Qwen or Mistral")
    if kind in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"):
        raise ModelError(f"{kind!r} has layers of Mamba, to which PEFT adds no adapters; expected a decoder like Llama")
    layers = [path for path, _ in model.named_modules() if _LAYER.search(path)]
    experts = [path for path in layers if path.endswith(".experts")]
    check_mixture(model.config.get_text_config(), experts)
    if experts and len(experts) < model.config.get_text_config().num_hidden_layers:
        raise ModelError(f"{kind!r} has experts in {len(experts)} of its layers alone, and the memory model covers "
                         "like layers; take a mixture with experts in every layer, or a dense decoder")
    decoder = {id(module) for module in model.get_decoder().modules()}
    outside = next((path for path in layers if id(model.get_submodule(path)) not in decoder), None)
    if outside is not None:
        raise ModelError(f"{kind!r} has layers outside its text decoder ({outside}), as models with a vision or audio "
                         "part have; they are loaded without that part only where transformers has a causal language "
                         "model for their text_config. Give a model of text alone")


def check_sizes(config: Any) -> None:
    """Raise ``ModelError`` if a size in a transformers configuration is not positive, or beyond what can be built."""
    text = config.get_text_config()
    unlike = getattr(text, "per_layer_attributes", None) or ()  # which ``_check_dense`` refuses
    sizes = {name: getattr(text, name, None) for name in _SIZES.difference(unlike)}
    sizes |= {name: getattr(text, name, None) or 1 for name in EXPERT_COUNTS}  # 0 without
    most = {"num_hidden_layers": MOST_LAYERS} | dict.fromkeys(EXPERT_COUNTS, MOST_EXPERTS)
    if wrong := sorted(f"{name}={str(size)[:40]}" for name, size in sizes.items()
                       if isinstance(size, int) and not 0 < size <= most.get(name, MOST_SIZE)):
        raise ModelError(f"the configuration of this {config.model_type!r} has {', '.join(wrong)}: sizes must be above "
                         f"0 and at most {MOST_SIZE:,}, layers at most {MOST_LAYERS:,} and experts at most "
                         f"{MOST_EXPERTS:,}; copy the model again")


def spec_from_hf_config(config: Any, name: str | None = None, *, trust_remote_code: bool = False) -> DecoderSpec:
    """Return the decoder that a transformers configuration describes; the model is built on the meta device.

    Code that comes with the model runs only with ``trust_remote_code``, which is passed on always, because
    transformers asks on the terminal otherwise. Raises ``ModelError`` if it knows no causal model of that type.
    """
    import torch  # planning memory does without torch
    from transformers import AutoModelForCausalLM
    check_sizes(config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # of odd values transformers raises many kinds
        if "trust_remote_code" in str(error):
            raise ModelError(f"{name or config.model_type!r} {OWN_CODE}") from error
        reason = "transformers has none" if "Unrecognized configuration class" in str(error) else \
            f"it knows no {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise ModelError(f"no causal language model can be built of a {config.model_type!r} configuration ({reason}): "
                         "it is not trained here; give a decoder of text alone, as of Llama or Qwen") from error
    return spec_from_model(model, name)
