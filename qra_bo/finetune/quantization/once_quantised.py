"""Refusal of bases that were quantised before: results of a format that reproduces such a base are meaningless.

A base dequantised from a 4-bit file is on an integer grid; a format of the same group size reproduces that grid almost
exactly (relative error 0.1 to 0.3 %, NF4's is 9.4 %), so that its 4 bits are as good as 16.
"""

from collections.abc import Sequence

from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import packed
from qra_bo.finetune.quantization.registry import backend_of
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ConfigError

SMALLEST_ERROR = 0.02
"""Relative error below which a format of at most 4 bits is taken to reproduce the base."""
SAMPLED = 3


def relative_error(bank: LayerBank, name: str, fmt: StorageFormat) -> float:
    """Return ``||Q(W) - W|| / ||W||`` of one linear of the bank's model."""
    weight = bank.dense_weight(name).float()
    layer = backend_of(fmt).build(bank.nearest(name, fmt), fmt, (weight.shape[0], weight.shape[1]), None,
                                  bank.compute_dtype)
    return float((packed(layer).unpack().float() - weight).norm() / weight.norm())


def refuse_reproducing_formats(bank: LayerBank, formats: Sequence[StorageFormat]) -> None:
    """Check every format of at most 4 bits on a few linears, spread over the decoder.

    Raises:
        ConfigError: If one reproduces all of them.
    """
    linears = bank.spec.linears
    names = [linears[i * (len(linears) - 1) // (SAMPLED - 1)].name for i in range(SAMPLED)]
    problems = []
    for fmt in formats:
        if fmt.bits > 4:
            continue
        worst = max(relative_error(bank, name, fmt) for name in names)
        if worst < SMALLEST_ERROR:
            problems.append(f"the format {fmt.name} of {fmt.bits} bits reproduces this base within {worst:.1%}: its "
                            "weights were quantised before, and results would flatter that format; use nf4 for 4 bits, "
                            "or an unquantised base")
    if problems:
        raise ConfigError(problems)
