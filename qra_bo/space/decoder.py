"""Shapes of a decoder: the linear layers that may be quantised and adapted, and the size of the rest."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of the decoder stack.

    Args:
        name: Module path within the model, e.g. ``"model.layers.3.self_attn.q_proj"``.
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        layer: Index of its decoder layer.
        group: ``"attn"`` or ``"mlp"`` (granularity ``block``).
        fused: Projections that share an input, e.g. ``"qkv"``, ``"o"``, ``"gateup"``, ``"down"``
            (granularity ``fused``).
        bias: Whether it has a bias (kept in 16 bits, never trained).
    """

    name: str
    out_features: int
    in_features: int
    layer: int
    group: str
    fused: str
    bias: bool = False

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The facts of a decoder that memory and search need, without its weights.

    Args:
        name: Name used in messages.
        family: ``model_type`` of transformers, e.g. ``"llama"``.
        linears: Linear layers of the decoder stack in module order (``lm_head`` is not one of them).
        n_layers: Number of decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocab_size: Rows of the embedding and of the head.
        tied: Whether the head shares the embedding's weight.
        other_numel: Parameters outside ``linears`` with tied ones counted once: embeddings, head, norms, biases.
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

    @property
    def linear_numel(self) -> int:
        return sum(linear.numel for linear in self.linears)
