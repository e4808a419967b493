"""Memory estimates of other tools, for comparison on the same tuples."""

from dataclasses import dataclass
from typing import Any

from qra_bo.memory.model import TrainShape
from qra_bo.space import DecoderSpec


@dataclass(frozen=True, slots=True)
class AccelerateSizes:
    """What ``accelerate estimate-memory`` computes from a model on the meta device.

    Args:
        total: Bytes of all parameters in fp32.
    """

    total: int

    def training(self, compute_dtype_bytes: int) -> float:
        """Its column "Training using Adam": full fine-tuning, for it knows no adapters."""
        from accelerate.commands.estimate import estimate_training_usage

        usage = estimate_training_usage(self.total, "float32" if compute_dtype_bytes == 4 else "bfloat16")
        return float(max(usage.values()))

    def weights(self, bits: float) -> float:
        """Its column "Total Size" (its int4 and int8 are an eighth and a quarter), at the average bits."""
        return self.total * bits / 32


def accelerate_sizes(model: Any) -> AccelerateSizes:
    """Its own calculation on a dense fp32 model on the meta device."""
    from accelerate.utils import calculate_maximum_sizes

    total, _ = calculate_maximum_sizes(model)
    return AccelerateSizes(int(total))


def gpu_poor_bytes(spec: DecoderSpec, shape: TrainShape, bits: float) -> float:
    """The formula of the calculator "Can your GPU run this?" (github.com/RahulSChand/gpu_poor) for QLoRA with Adam.

    Weights ``(2 V d + L (4 d^2 + 3 d i)) bits / 8``; activations a layer and sequence
    ``16 c n d + 6 c n i + (2 c + 4) h n^2 + 8 n``; optimiser and gradients ``48 L d`` (its rank is always 8); and
    ``0.75 L (15 d + 6 i) 50 sqrt(n / 50)`` a sequence for quantisation. ``n`` tokens of a sequence, ``c`` bytes of the
    compute type, ``h`` heads. It knows 4 bits here; it gets the average bits of the allocation. Its 650 MB for CUDA
    are left out, for the traced steps have none. It has no checkpointing.
    """
    d, i, n, c = spec.hidden_size, spec.intermediate_size, shape.length, shape.compute_dtype_bytes
    layers = spec.n_layers
    weights = (2 * spec.vocab_size * d + layers * (4 * d * d + 3 * d * i)) * bits / 8
    activations = 16 * c * n * d + 6 * c * n * i + (2 * c + 4) * spec.n_heads * n * n + 8 * n
    extra = 0.75 * (15 * d + 6 * i) * 50 * max(1.0, n / 50) ** 0.5
    return float(weights + layers * (48 * d + shape.batch * (activations + extra)))
