"""Decoders as GGUF describes them: architecture, names of tensors, their order of rows, and the keys of the header.

Families are those that tests compare with transformers on random models: llama and mistral, qwen2, qwen3, gemma3_text,
phi3, smollm3, seed_oss, olmo2; mixtral, qwen3_moe and olmoe, whose experts are one tensor of three sides a layer.
Another family, or a setting that llama.cpp computes otherwise, is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor

from qra_bo.finetune.models.gguf_header import name_map
from qra_bo.memory.serving import CONSUMERS
from qra_bo.space.decoder import expert_of, stack_of
from qra_bo.utils.errors import ConfigError

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "mistral": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2,
                 "qwen3": MODEL_ARCH.QWEN3, "gemma3_text": MODEL_ARCH.GEMMA3, "phi3": MODEL_ARCH.PHI3,
                 "mixtral": MODEL_ARCH.LLAMA, "qwen3_moe": MODEL_ARCH.QWEN3MOE, "olmoe": MODEL_ARCH.OLMOE,
                 "smollm3": MODEL_ARCH.SMOLLM3, "seed_oss": MODEL_ARCH.SEED_OSS, "olmo2": MODEL_ARCH.OLMO2}
"""GGUF's architecture of each family of transformers."""
_GEMMA_PERIOD = 6
"""Gemma 3: every sixth layer sees the whole text, fixed in llama.cpp."""


@dataclass(frozen=True)
class Layout:
    """A decoder's form in GGUF; made by ``layout_of``.

    Args:
        config: Configuration by transformers.
        architecture: GGUF's.
        rope: Parameters of the rotary embedding (of the layers that see the whole text).
    """

    config: Any
    architecture: MODEL_ARCH
    rope: Mapping[str, Any]

    @property
    def head_width(self) -> int:
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def name(self, tensor: str) -> str:
        """Return GGUF's name of a tensor or a module of the base model; raises ``ConfigError`` if it has none."""
        found = name_map(self.architecture, self.config.num_hidden_layers).get_name(tensor, (".weight", ".bias"))
        if found is None:
            raise ConfigError(f"export.targets=[gguf]: GGUF's {self.config.model_type} models have no tensor for "
                              f"{tensor!r} of this base model; choose another base model or another export target")
        return str(found)

    def parts(self, module: str, rows: int) -> list[tuple[str, Tensor]]:
        """Return the parts that GGUF keeps a linear of ``rows`` rows in: name, and its rows in llama.cpp's order.

        Llama's rotary embedding turns neighbouring rows of a head there, and rows of its two halves in transformers.
        Experts have the names of their stacks, and gate and up are apart.
        """
        path, leaf = stack_of(module).rsplit(".", 1)
        order = torch.arange(rows)
        if self.architecture in (MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3) and leaf in ("q_proj", "k_proj"):
            order = order.view(-1, 2, self.head_width // 2).transpose(1, 2).reshape(-1)
        if expert_of(module) is None:
            return [(self.name(module), order)]
        names = [self.name(f"{path}.{part}_proj") for part in (("down",) if leaf == "down" else ("gate", "up"))]
        return list(zip(names, order.chunk(len(names)), strict=True))

    def shifted(self, tensor: str, value: Tensor) -> Tensor:
        """Return a tensor outside the linears as llama.cpp uses it: Gemma's norms multiply by 1 + weight."""
        return value.float() + 1 if self.architecture is MODEL_ARCH.GEMMA3 and tensor.endswith("norm.weight") else value

    def add_keys(self, writer: GGUFWriter) -> None:
        """Write the sizes and settings of the decoder into the header."""
        config, width = self.config, self.head_width
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(self._rotated)
        writer.add_rope_freq_base(float(self.rope["rope_theta"]))
        if experts := getattr(config, "num_local_experts", 0):
            writer.add_expert_count(experts)
            writer.add_expert_used_count(config.num_experts_per_tok)
            writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
        if self.architecture is MODEL_ARCH.GEMMA3:
            writer.add_sliding_window(config.sliding_window)
        if self.architecture is MODEL_ARCH.PHI3:
            writer.add_sliding_window(0)
        kind = self.rope["rope_type"]
        if kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(self.rope["factor"]))
        if kind == "longrope":
            length = getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
            writer.add_rope_scaling_orig_ctx_len(int(self.rope.get("original_max_position_embeddings") or length))
            writer.add_rope_scaling_attn_factors(self._scaled()[1])

    def tables(self) -> dict[str, Tensor]:
        """Return the tables of the rotary embedding, ``rotated / 2`` in fp32 each, that stand among the tensors."""
        kind = self.rope["rope_type"]
        if kind == "llama3":  # whole wavelengths that fit into the original context stay, long ones are stretched
            plain = 1.0 / float(self.rope["rope_theta"]) ** (torch.arange(0, self._rotated, 2).float() / self._rotated)
            return {"rope_freqs.weight": plain / self._scaled()[0]}  # llama.cpp divides each frequency by these
        if kind == "longrope":
            return {f"rope_factors_{which}.weight": torch.tensor(self.rope[f"{which}_factor"], dtype=torch.float32)
                    for which in ("long", "short")}
        return {}

    @property
    def _rotated(self) -> int:
        return int(self.head_width * self.rope.get("partial_rotary_factor", 1.0))

    def _scaled(self) -> tuple[Tensor, float]:
        """Return the rotary embedding's scaled frequencies and its factor on queries and keys, by transformers."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # slow to import
        frequencies, factor = ROPE_INIT_FUNCTIONS[self.rope["rope_type"]](self.config, torch.device("cpu"))
        return frequencies, float(factor)


def layout_of(config: Any) -> Layout:
    """Describe a decoder for GGUF.

    Args:
        config: Configuration of the base model by transformers.

    Raises:
        ConfigError: If its family, or settings of it, are not supported; all problems at once.
    """
    family = config.model_type
    CONSUMERS["llamacpp"].check_family(family)
    nested = dict(config.rope_parameters)
    rope = nested.get("full_attention", nested)
    rope = {"rope_type": "default", **rope}
    problems = list(_differences(config, rope, nested.get("sliding_attention")))
    if problems:
        raise ConfigError(f"export.targets=[gguf]: llama.cpp computes this {family} model otherwise than transformers, "
                          f"because of its {'; '.join(problems)}. Choose another base model, or another export target")
    return Layout(config, ARCHITECTURES[family], rope)


def _differences(config: Any, rope: Mapping[str, Any], local: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what llama.cpp computes otherwise; ``local`` is the rotary embedding of layers with a sliding window."""
    family, layers = config.model_type, config.num_hidden_layers
    gemma, olmoe = family == "gemma3_text", family == "olmoe"
    window = getattr(config, "sliding_window", None)
    if not gemma and window is not None and getattr(config, "use_sliding_window", True) \
            and window < config.max_position_embeddings:
        yield "sliding window over all layers"
    if gemma and list(config.layer_types) != ["sliding_attention" if (i + 1) % _GEMMA_PERIOD else "full_attention"
                                              for i in range(layers)]:
        yield "order of layers with a sliding window"
    if gemma and local is not None and (local.get("rope_type", "default") != "default"
                                        or float(local["rope_theta"]) != 10000.0):
        yield "rotary embedding of layers with a sliding window"
    # the width is by llama.cpp's rule for the 27B model, which has 62 layers
    width = config.hidden_size / config.num_attention_heads if gemma and layers == 62 else \
        getattr(config, "head_dim", None)
    if getattr(config, "query_pre_attn_scalar", width) != width:
        yield "scale of the attention's scores"
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        yield "capped scores or logits"
    if rope["rope_type"] not in ("default", "linear", "llama3") and (family, rope["rope_type"]) != ("phi3", "longrope"):
        yield "scaling of the rotary embedding"
    if (getattr(config, "hidden_activation", None) or config.hidden_act) != ("gelu_pytorch_tanh" if gemma else "silu"):
        yield "activation of the MLP"
    if any(turned == (i % 4 == 3) for i, turned in enumerate(getattr(config, "no_rope_layers", None) or ())):
        yield "layers without a rotary embedding"
    if getattr(config, "norm_topk_prob", not olmoe) == olmoe:
        yield f"norm_topk_prob={config.norm_topk_prob}"
    if getattr(config, "clip_qkv", None) is not None:
        yield "clipped queries, keys and values"
    if olmoe and (config.tie_word_embeddings or config.num_key_value_heads != config.num_attention_heads):
        yield "tied embeddings or grouped heads"
