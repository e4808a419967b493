"""Bytes of a training step beyond the resident ones: activations, gradients in flight, workspace.

Derived from the modules of transformers 5 under PEFT's LoRA (working adapters in the compute type, no dropout) with
causal SDPA, and held to traced steps by tests. ``n`` is tokens of a batch, ``d`` width, ``i`` MLP width, ``c``
bytes of the compute type.
"""

from dataclasses import dataclass

from qra_bo.memory.embeddings import head_bytes
from qra_bo.memory.formats import scratch_bytes
from qra_bo.space import DecoderSpec, Linear, StorageFormat


@dataclass(frozen=True, slots=True)
class TrainShape:
    """Settings of the trainer that determine memory, within the bounds of the configuration.

    Args:
        batch: Sequences that go forward and backward at once, of ``length`` tokens each.
        checkpointing: Whether every decoder layer is recomputed in the backward pass.
        compute_dtype_bytes: 2 (bf16, fp16) or 4 (fp32); unquantised weights have it too.
        optimizer: One of ``memory.optimizers.OPTIMIZERS``; all work on fp32 masters, in fp32 the adapters themselves.
        logits_chunk: Tokens whose logits are alive at once; 0 is all.
        device: ``"cpu"`` or ``"cuda"``.
        isolated: Whether a mask keeps attention within the records of a sequence.
        accumulate: Batches of an optimiser step; from two on, the gradients of those before are alive in each.
        embeddings: Bits of the embedding and the head: one of ``memory.embeddings.WIDTHS``.
        grouped: Whether attention's kernel takes fewer heads of keys and values than of queries
            (``utils.device.takes_groups``).
    """

    batch: int
    length: int
    checkpointing: bool = False
    compute_dtype_bytes: int = 2
    optimizer: str = "adamw"
    logits_chunk: int = 128
    device: str = "cpu"
    accumulate: int = 1
    isolated: bool = False
    embeddings: int = 16
    grouped: bool = True

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def allocator(self) -> str:
        """Kind of allocator and of its load: a key of ``memory.model.ASSUMED``."""
        return "cuda, checkpointed" if self.device == "cuda" and self.checkpointing else self.device

    @property
    def fp32_attention(self) -> bool:
        """On a CPU attention is computed in fp32 when the compute type is 16 bits (``finetune.models.load``)."""
        return self.device == "cpu" and self.compute_dtype_bytes == 2


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's decoder layer differs from Llama's.

    Args:
        extra_norms: RMSNorms of width ``d`` beyond two.
        head_norms: RMSNorms over the heads of q and k.
        gated: Whether the MLP has a gate.
        layer_norm: LayerNorm (keeps its input as it is) instead of RMSNorm (keeps an fp32 copy).
        parallel: Attention and MLP read the same residual stream, which two LayerNorms keep once.
        partial_rotary: Rotated heads are assembled anew, in a layout that makes attention's output be copied.
        fused: One projection each for q, k, v and for gate and up; parts are views that keep the whole.
        fp32_norm_weight: The norm's weight is applied in fp32.
        fp32_routing: Outputs of experts are weighed in fp32.
    """

    extra_norms: int = 0
    head_norms: bool = False
    gated: bool = True
    layer_norm: bool = False
    parallel: bool = False
    partial_rotary: bool = False
    fused: bool = False
    fp32_norm_weight: bool = False
    fp32_routing: bool = False


_FAMILIES = {**dict.fromkeys(("llama", "mistral", "ministral", "ministral3", "qwen2", "seed_oss", "smollm3"), Family()),
             **dict.fromkeys(("qwen3", "hunyuan_v1_dense"), Family(head_norms=True)),
             **dict.fromkeys(("olmo2", "olmo3", "exaone4"), Family(extra_norms=1, head_norms=True)),
             "phi3": Family(partial_rotary=True, fused=True), "gemma": Family(fp32_norm_weight=True),
             "gemma2": Family(extra_norms=2, fp32_norm_weight=True),
             "gemma3_text": Family(extra_norms=2, head_norms=True, fp32_norm_weight=True),
             "gpt_neox": Family(gated=False, layer_norm=True, parallel=True, partial_rotary=True, fused=True),
             "mixtral": Family(fp32_routing=True), "qwen3_moe": Family(head_norms=True),
             "olmoe": Family(head_norms=True)}
_CAUTIOUS = Family(extra_norms=2, head_norms=True, partial_rotary=True, fused=True, fp32_norm_weight=True)
"""Stands in for families that are not listed: the most demanding combination."""

ORDER = ("down", "gateup", "o", "qkv")
"""Groups of linears in the order in which the backward pass reaches them."""


def group_of(linear: Linear) -> str:
    """Return the member of ``ORDER`` that a linear belongs to; unknown names follow their block."""
    return linear.fused if linear.fused in ORDER else ("qkv" if linear.group == "attn" else "gateup")


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant of a layer's backward pass that may be the peak.

    Args:
        group: Linears whose dequantised weight is alive then; ``""`` for none.
        level: How many groups of ``ORDER`` already have their gradients.
        extra: Bytes beyond everything that the layer saved, without weights and adapters (may be negative).
        result: Bytes of what those linears' product yields: there with the dense weight, not yet while it is unpacked.
    """

    group: str
    level: int
    extra: int
    result: int = 0


@dataclass(frozen=True)
class LayerModel:
    """Activations of one decoder layer, in bytes; the module's docstring names the symbols."""

    spec: DecoderSpec
    shape: TrainShape

    @property
    def family(self) -> Family:
        return _FAMILIES.get(self.spec.family, _CAUTIOUS)

    @property
    def kernel_kv_heads(self) -> int:
        """Heads of k and of v that the attention kernel is given: with a mask, and where it takes no groups, those of
        q, each repeated."""
        return self.spec.n_heads if self.shape.isolated or not self.shape.grouped else self.spec.n_kv_heads

    @property
    def stream(self) -> int:
        """One tensor of the residual stream in the compute type, ``c n d``."""
        return self.shape.compute_dtype_bytes * self.shape.tokens * self.spec.hidden_size

    @property
    def mlp(self) -> int:
        """One tensor of the MLP's width, ``c n i``."""
        return self.shape.compute_dtype_bytes * self.shape.tokens * self.spec.intermediate_size

    def heads(self, count: int, item: int) -> int:
        """``count`` heads of every token at ``item`` bytes an element."""
        return item * self.shape.tokens * count * self.spec.head_dim

    @property
    def norm_saved(self) -> int:
        """Saved tensors of a norm of the residual stream: its input in fp32 (as it is, for LayerNorm), the scale, and
        the weight where it is cast first."""
        n, d, family = self.shape.tokens, self.spec.hidden_size, self.family
        if family.layer_norm:
            return self.stream + 8 * n
        return 4 * n * d + 4 * n + (4 * d if family.fp32_norm_weight else 0)

    @property
    def _norm_keeps_input(self) -> bool:  # itself, not a copy in fp32
        return self.shape.compute_dtype_bytes == 4 or self.family.layer_norm

    @property
    def norm_spike(self) -> int:
        """Temporaries in a norm's backward pass beyond its saved tensors and two gradients."""
        n, d, family = self.shape.tokens, self.spec.hidden_size, self.family
        if family.layer_norm:
            return self.stream
        if self.shape.compute_dtype_bytes == 4:
            return 12 * n * d
        return (18 if family.fp32_norm_weight else 16) * n * d

    @property
    def attention_saved(self) -> int:
        """Rotated q and k, v, the output and its logsumexp; inputs of the projections not counted."""
        s, n, c, family = self.spec, self.shape.tokens, self.shape.compute_dtype_bytes, self.family
        cast = self.shape.fp32_attention
        heads = s.n_heads + s.n_kv_heads
        total = self.heads(2 * (s.n_heads + self.kernel_kv_heads), 4 if cast else c) + 4 * n * s.n_heads
        if family.fused and not cast and self.kernel_kv_heads == s.n_kv_heads:
            total += self.heads(heads, c)  # v is a view that keeps q and k as they were
        if family.partial_rotary or cast:
            total += self.heads(s.n_heads, c)  # the output again, as the projection's input
        if family.head_norms:
            total += self.heads(heads, 4) + 4 * n * heads
        return total

    @property
    def routed(self) -> int:
        """Saved tensors of a layer's experts: of every token and expert chosen for it the gate and up projection, the
        activation, the output with its place and weight, and with adapters the linears' inputs; of the router the
        probabilities and the choice."""
        s, n, adapted = self.spec, self.shape.tokens, any(m.expert and m.adapted for m in self.spec.linears)
        chosen = (4 if adapted else 3) * self.mlp + (2 if adapted else 1) * self.stream + 20 * n
        return s.experts_per_token * (chosen + 12 * n) + 4 * n * s.n_experts

    @property
    def saved(self) -> int:
        """All saved tensors of one layer, adapters' own activations not counted."""
        family = self.family
        if self.spec.n_experts:  # which keep the tokens' places in the residual stream, and not the stream
            return 2 * self.norm_saved + self.stream + self.attention_saved + self.routed
        return ((2 + family.extra_norms) * self.norm_saved + (1 if family.parallel else 2) * self.stream
                + self.attention_saved + (4 if family.gated else 2) * self.mlp)

    @property
    def first_unsaved(self) -> int:
        """Saved tensors that the first layer lacks: its input takes no gradient, so its first norm saves nothing."""
        return 0 if self.shape.checkpointing else self.norm_saved

    @property
    def recomputed(self) -> int:
        """Tensors that a checkpointed layer computes again beside its kept input."""
        return self.saved - (self.stream if self._norm_keeps_input else 0)

    @property
    def rank_saved(self) -> int:
        """Bytes that each rank of one linear's adapter adds to ``saved``: its low-rank activation."""
        return self.shape.compute_dtype_bytes * self.shape.tokens

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Candidates for the peak within a layer's backward pass, in order; the residual's gradient is always there.

        Of a mixture the worst case counts: all tokens reach the same experts.

        A checkpointed layer is recomputed when its last gradient is needed: the gradient is there twice (as it is and
        scaled), and the residual stream where the norm has an fp32 copy of it.
        """
        s, shape, family = self.spec, self.shape, self.family
        d, i = self.stream, self.mlp
        c, cast = shape.compute_dtype_bytes, shape.fp32_attention
        q, kv = self.heads(s.n_heads, c), self.heads(s.n_kv_heads, c)
        inner = (4 if family.gated else 2) * i  # of the MLP, all released when its input gradient is complete
        gone = self.norm_saved + (q if cast or family.partial_rotary else 0) \
            + (self.routed if s.n_experts else inner + d)
        attention = self.heads(2 * s.n_heads + 2 * self.kernel_kv_heads, 4 if cast else c)
        if s.n_experts:  # the first expert's, then a next one's of few tokens, when others' tensors are gone
            e = d + 8 * shape.tokens * s.n_experts if shape.checkpointing else 0  # output and choice, made again
            weighing = 4 * d + (0 if self._norm_keeps_input else e) + (2 * d if c == 2 and family.fp32_routing else 0)
            mlp = [Moment("", 0, weighing), Moment("down", 1, d + e, i), Moment("", 1, 3 * i + e),
                   Moment("gateup", 2, 2 * e - i, d), Moment("gateup", 2, 2 * d + e),
                   Moment("", 2, 2 * d - self.routed + self.norm_spike)]
        else:
            mlp = [Moment("down", 1, d, i), Moment("", 1, d + (2 if family.gated else 1) * i),
                   Moment("gateup", 2, 2 * d - (i if family.gated else 0), d),
                   Moment("gateup", 2, 3 * d - inner + i, d), Moment("", 2, d - inner + self.norm_spike)]
        out = [*mlp, Moment("o", 3, d + q - gone, q),
               Moment("", 3, d + attention - gone),
               Moment("qkv", 4, 3 * d + q + 2 * kv - gone - attention, d)]
        if family.extra_norms:
            out.append(Moment("", 0, 2 * d + self.norm_spike))
        if shape.checkpointing:
            there = 2 * d + (0 if self._norm_keeps_input else d)
            out.append(Moment("down", 0, there, d))
            if family.fused and family.gated:
                out.append(Moment("", 0, there + 2 * i))
        return tuple(out)

    @property
    def loss_bytes(self) -> int:
        """Bytes beyond all saved activations while the head and the loss are evaluated (forward)."""
        shape, targets = self.shape, self.shape.batch * (self.shape.length - 1)
        chunk = min(shape.logits_chunk or targets, targets)
        return self.norm_saved + 2 * self.stream + head_bytes(self.spec, shape.embeddings, chunk,
                                                              shape.compute_dtype_bytes, shape.device)

    @property
    def inputs(self) -> int:
        """Token ids, labels, positions, rotary tables and the mask, if any, of a step."""
        shape = self.shape
        c, rows = shape.compute_dtype_bytes, shape.batch if shape.isolated else 1  # positions of every row differ
        mask = shape.tokens * shape.length * (4 if shape.fp32_attention else c) if shape.isolated else 0
        return 24 * shape.tokens + 2 * c * rows * shape.length * self.spec.head_dim + mask


def workspace_bytes(fmt: StorageFormat, linear: Linear, shape: TrainShape, result: int) -> int:
    """Bytes of a product with one linear's weight: the dense weight, and the scratch of unpacking or the ``result``.

    There is no copy of 16-bit weights in a 16-bit compute type.
    """
    c = shape.compute_dtype_bytes
    dense = 0 if fmt.backend == "none" and c == 2 else c * linear.numel
    return dense + max(result, scratch_bytes(fmt, linear.out_features, linear.in_features, shape.device, c))


_GRANULE = {"cpu": 64, "cuda": 512}
"""Allocators hand out multiples of this many bytes."""
_STORAGES_PER_LAYER = 64
"""Alive at a peak and of odd sizes; most of a layer's storages are whole granules."""
_STORAGES_PER_EXPERT = 12
"""Packed tensors of its two linears, and saved tensors of the tokens that reach it."""


def rounding_bytes(spec: DecoderSpec, shape: TrainShape) -> int:
    """Bytes lost to the allocator's granules: half a granule a storage."""
    return spec.n_layers * (_STORAGES_PER_LAYER + _STORAGES_PER_EXPERT * spec.n_experts) * _GRANULE[shape.device] // 2

