"""Seconds of training on a GPU, from the model's operations, the bytes that are dequantised, and the card's data sheet.

An estimate that was not measured on a GPU: a run corrects it by its first trial.
"""

from qra_bo.memory.cards import Card
from qra_bo.memory.formats import metadata_bytes, weight_bytes
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, SearchSpace, StorageFormat

COMPUTE_SHARE = 0.5
"""Assumed share of the card's dense 16-bit rate that training reaches, element-wise operations included."""
BANDWIDTH_SHARE = 0.7
"""Assumed share of the card's bandwidth that dequantisation reaches."""
LAUNCHES = {False: 224, True: 279}
"""Operations that one decoder layer dispatches in a training step, without and with checkpointing (views left out):
counted on a CPU for Llama layers under LoRA."""
LAUNCH_SECONDS = 6e-6
"""Assumed host time of one operation; it bounds small models and batches."""


def step_seconds(memory: MemoryModel, space: SearchSpace, allocation: Allocation, card: Card) -> float:
    """Return the estimated seconds of one forward and backward pass of ``memory.shape.tokens`` tokens.

    Frozen linears take a pass forward and one to their inputs, adapters a third one to their weights, and the head is
    computed again in the backward pass; checkpointing repeats the layers' forward pass. Causal attention counts half
    of its scores. Every pass over a quantised linear reads its packed bytes and writes 16-bit weights.
    """
    spec, shape, formats = memory.spec, memory.shape, {f.name: f for f in space.formats}
    again = int(shape.checkpointing)
    adapters = sum(rank * (m.in_features + m.out_features)
                   for unit, rank in zip(space.units, allocation.ranks, strict=True) for m in unit.linears)
    attention = spec.n_layers * spec.n_heads * spec.head_dim * shape.length
    per_token = (2 * (2 + again) * spec.linear_numel + 2 * (3 + again) * adapters
                 + 6 * spec.vocab_size * spec.hidden_size + 2 * (3.5 + again) * attention)
    dequantised = (2 + again) * sum(
        _dequantised_bytes(formats[name], m.out_features, m.in_features)
        for unit, name in zip(space.units, allocation.formats, strict=True) for m in unit.linears)
    on_card = (shape.tokens * per_token / (COMPUTE_SHARE * card.tflops * 1e12)
               + dequantised / (BANDWIDTH_SHARE * card.bandwidth))
    return max(on_card, spec.n_layers * LAUNCHES[shape.checkpointing] * LAUNCH_SECONDS)


def _dequantised_bytes(fmt: StorageFormat, out_features: int, in_features: int) -> int:
    """Return the bytes that one dequantisation moves; 16-bit weights need none."""
    if fmt.bits == 16:
        return 0
    return (weight_bytes(fmt, out_features, in_features) + metadata_bytes(fmt, out_features, in_features)
            + 2 * out_features * in_features)
