"""Bytes of evaluating held-out text: a forward pass in which nothing is saved, in batches of its own size.

Between training steps everything resident stays: weights, adapters, masters and moments. The largest instant of a
layer's forward pass, or the head's chunk of logits, is added. The sum exceeds a training step's only where the
evaluation's batch is much larger, or where checkpointing leaves little saved in the step.
"""

from dataclasses import replace

import numpy as np

from qra_bo.memory.activations import LayerModel, Moment, group_of, workspace_bytes
from qra_bo.memory.embeddings import head_bytes
from qra_bo.space import IntArray, SearchSpace, Unit


def evaluation_layer(layer: LayerModel) -> LayerModel:
    """The same layer over a batch of the evaluation."""
    return LayerModel(layer.spec, replace(layer.shape, batch=layer.shape.eval_batch))


def forward_moments(layer: LayerModel) -> tuple[Moment, ...]:
    """Candidates for the peak of one layer's forward pass without gradients.

    The embeddings' output, the layer's input and the residual stream stay alive, and what a block was given until it
    returns; in attention the first layer's input is its residual stream.
    """
    s, c, family = layer.spec, layer.shape.compute_dtype_bytes, layer.family
    d, i = layer.stream, layer.mlp
    q, kv = layer.heads(s.n_heads, c), layer.heads(s.n_kv_heads, c)
    norm = (12 if family.fp32_norm_weight else 8) * layer.shape.tokens * s.hidden_size if not family.layer_norm else d
    attention, block = 3 * d, 4 * d
    states = q + 2 * kv
    held = states + (q + kv if family.fused else 0)  # v is a view that keeps the product as it was
    out_copy = q if family.partial_rotary else 0
    given = layer.heads(s.n_heads + 2 * layer.kernel_kv_heads, c)
    mixed = 4 * (q + given + out_copy) // c + (0 if family.partial_rotary else q) if layer.shape.fp32_attention \
        else q + out_copy + (given - states)
    rotated = 2 * q if family.layer_norm else max(3 * q, q + 3 * kv)  # GPT-NeoX rotates a quarter of each head
    gate = 2 * i if family.fused and family.gated else 0
    out = [Moment("", 0, 3 * d + norm), Moment("qkv", 0, attention + states),
           Moment("", 0, attention + states + rotated), Moment("", 0, attention + held + mixed),
           Moment("o", 0, attention + held + q, d),
           Moment("gateup", 0, block + (i if family.gated and not gate else 0), gate or i),
           Moment("", 0, block + gate + (3 if family.gated and not gate else 2) * i),
           Moment("down", 0, block + gate + i, d)]
    if family.extra_norms:
        out.append(Moment("", 0, block + norm))
    if family.head_norms:
        out += [Moment("", 0, attention + q + layer.heads(s.n_heads, 8)),
                Moment("", 0, attention + q + kv + layer.heads(s.n_kv_heads, 8))]
    return tuple(out)


def evaluation_spikes(layer: LayerModel, space: SearchSpace) -> IntArray:
    """Largest instant of an evaluation beyond the resident bytes, ``L x F x R``; see ``evaluation_layer``."""
    ranks = np.array(space.ranks.values, dtype=np.int64)
    moments, shape = forward_moments(layer), layer.shape
    # The head has the last hidden states and one chunk of logits.
    targets, c = shape.length - 1, shape.compute_dtype_bytes
    losses = head_bytes(layer.spec, shape.embeddings, min(shape.logits_chunk or targets, targets), c, shape.device,
                        gradients=False)
    plain = max([layer.stream + losses, *(m.extra for m in moments if not m.group)])

    def spike(unit: Unit) -> IntArray:
        best = np.full((len(space.formats), len(ranks)), plain, dtype=np.int64)
        for moment in moments:
            for linear in (m for m in unit.linears if group_of(m) == moment.group):
                work = np.array([workspace_bytes(f, linear, layer.shape, moment.result) for f in space.formats])
                best = np.maximum(best, moment.extra + work[:, None] + layer.rank_saved * ranks)
        return best

    keys = [tuple((m.out_features, m.in_features, m.fused) for m in unit.linears) for unit in space.units]
    by_key = {key: spike(unit) for key, unit in dict(zip(keys, space.units, strict=True)).items()}
    return np.stack([by_key[key] for key in keys])
