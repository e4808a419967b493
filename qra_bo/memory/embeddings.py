"""Embedding and head in fewer bits: their storage format, their bytes, and what a loss through a packed head needs.

Both are tables of ``vocabulary x width`` weights; a tied head shares the embedding's. A packed head is never unpacked
as a whole: a run of rows at a time, which is called a tile (``finetune.quantization.tables``).
"""

from qra_bo.memory.formats import matrix_bytes, parse_format, scratch_bytes
from qra_bo.space import DecoderSpec, StorageFormat
from qra_bo.utils.errors import SpaceError

WIDTHS = (16, 8, 6)
"""Bits that an embedding can have."""
_GROUPS = (64, 32)
_TILE_NUMEL = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Weights of a tile at most: its products fill the device, and its bytes hide behind a chunk of logits."""


def embedding_format(bits: int, width: int) -> StorageFormat | None:
    """Return the format of tables with rows of ``width`` weights; ``None`` where they stay in 16 bits.

    The group is the largest that divides a row. Raises ``SpaceError`` if none does.
    """
    if bits == 16:
        return None
    group = next((g for g in _GROUPS if width % g == 0), None)
    if group is None:
        raise SpaceError(f"embeddings={bits} packs rows in groups of {' or '.join(map(str, _GROUPS))} weights, and the "
                         f"embedding of this model has rows of {width}: use embeddings=16")
    return parse_format(f"sym{bits}-g{group}")


def packable_widths(width: int) -> tuple[int, ...]:
    """Return the bits that an embedding with rows of ``width`` weights can have, the most first."""
    return WIDTHS if any(width % group == 0 for group in _GROUPS) else WIDTHS[:1]


def table_formats(spec: DecoderSpec, bits: int) -> tuple[StorageFormat, ...]:
    """Return the formats of the embedding and, where it has weights of its own, the head: the types of a file whose
    codes are trained on, else those of ``bits``; empty in 16 bits. Raises ``SpaceError`` if they can't be packed."""
    if spec.tables:
        return tuple(map(parse_format, spec.tables))
    fmt = embedding_format(bits, spec.hidden_size)
    return () if fmt is None else (fmt,) * (2 - spec.tied)


def table_numel(spec: DecoderSpec) -> int:
    """Return the weights of one table."""
    return spec.vocab_size * spec.hidden_size


def packed_tables_bytes(spec: DecoderSpec, bits: int) -> int:
    """Return the bytes of the packed embedding and head, scales included; 0 in 16 bits. Raises ``SpaceError`` if they
    can't be packed."""
    return sum(sum(matrix_bytes(fmt, spec.vocab_size, spec.hidden_size)) for fmt in table_formats(spec, bits))


def unpacked_numel(spec: DecoderSpec, bits: int) -> int:
    """Return the parameters outside the linears that no format packs: norms and biases, and in 16 bits the tables."""
    return spec.other_numel - len(table_formats(spec, bits)) * table_numel(spec)


def tile_rows(rows: int, width: int, device: str) -> int:
    """Return the rows of a tile of a ``rows x width`` table on ``"cpu"`` or ``"cuda"``."""
    return min(rows, max(1, _TILE_NUMEL[device] // width))


def head_bytes(spec: DecoderSpec, bits: int, tokens: int, compute_bytes: int, device: str) -> int:
    """Return the most bytes that the head and the losses of ``tokens`` tokens need at once, beside hidden states.

    A live logit takes its own bytes, an fp32 copy of 16 bits, and its log-probability; gradients of the hidden states
    are formed at once (``finetune.training.loss``).
    """
    c, logits = compute_bytes, tokens * spec.vocab_size
    losses = logits * (10 if c == 2 else 8)
    formats = table_formats(spec, bits)
    if not formats:
        return losses
    fmt = formats[-1]
    rows, d = tile_rows(spec.vocab_size, spec.hidden_size, device), spec.hidden_size
    tile, unpacking = c * rows * d, scratch_bytes(fmt, rows, d, device, c)
    filling = c * logits + tile + max(unpacking, c * tokens * rows)
    product = (c * tokens * rows if c == 2 else 0) + c * tokens * d
    backward = 4 * logits + 4 * tokens * d + tile + max(unpacking, product)
    return max(losses, filling, backward)
