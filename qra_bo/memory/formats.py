"""Bytes of each storage format: pure arithmetic that equals, to the byte, what the real libraries store.

| backend      | codes                                            | metadata                                           |
|--------------|--------------------------------------------------|----------------------------------------------------|
| bitsandbytes | NF4: two codes a byte                            | fp32 absmax a block; doubly quantised: 1 byte a    |
|              |                                                  | block, fp32 absmax per 256 blocks, one fp32 offset |
| bitsandbytes | int8: one byte a weight, unpacked to 16 bits     | fp32 scale a row                                   |
| hqq          | 2, 4, 8 bits in bytes; 3 bits: 10 codes an int32 | 16-bit scale and zero a group                      |
|              | 5, 6 bits: upper 4 bits and lower 1 or 2 apart   |                                                    |
| integer      | the same, but for 3 bits: upper 2 and lower 1    | 16-bit scale a group of a row's columns;           |
|              |                                                  | ``int``: one byte of zero a group beside it        |
| trellis      | bits / 8 bytes a weight, in rings of outputs     | 16-bit scale a row; 4 bits a row and 64 columns    |
| none         | 2 bytes a weight                                 | none                                               |
| ordered      | the same as ``int``                              | that of ``int``; 4 bytes a column                  |
| gguf         | bits / 8 bytes a weight (``file_formats``)       | the rest of a block                                |
| exl3         | the same, of sides padded to whole 128           | 16-bit scale a row, and a column                   |

Look-up tables (of NF4, double quantisation: 1,088 bytes; of trellis codes: ``table_bytes``) are shared by all layers
and not counted to any of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qra_bo.memory.file_formats import BACKEND, EXL3, ORDERED, OTHER, STORED_FORMATS, STRIP, TILES, TYPES, in_strips
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import ConfigError, SpaceError, nearest_first

NESTED_BLOCK = 256
"""Blocks that share one second-level scale under double quantisation (fixed by bitsandbytes)."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A bit field of every code, packed separately as HQQ packs codes of so many bits.

    A word has ``per_word`` groups: its ``k``-th field, from the highest on, holds the ``k``-th run of them.
    """

    bits: int
    per_word: int
    word_bytes: int


@dataclass(frozen=True, slots=True)
class Width:
    """What there is of a bit-width below 16.

    Args:
        default: Name of the format where the configuration names none, as in ``conf/config.yaml``.
        kinds: Kinds of its formats: ``"hqq"``, ``"sym"`` (integer, zero is the middle code), ``"int"`` (integer, with
            zeros), ``"t"`` (trellis), ``"exl"`` (trellis of EXL3).
        planes: How codes of the other kinds are stored, the upper bits first; three planes at most, of HQQ two.
    """

    default: str
    kinds: tuple[str, ...]
    planes: tuple[Plane, ...]


_ONE, _TWO, _FOUR, _EIGHT = Plane(1, 8, 1), Plane(2, 4, 1), Plane(4, 2, 1), Plane(8, 1, 1)
WIDTHS: Mapping[int, Width] = {
    1: Width("t1", ("t",), ()),
    2: Width("t2", ("hqq", "sym", "int", "t", "exl"), (_TWO,)),
    3: Width("t3", ("hqq", "sym", "int", "t", "exl"), (_TWO, _ONE)),
    4: Width("nf4", ("hqq", "sym", "int", "t", "exl"), (_FOUR,)),
    5: Width("hqq5-g128", ("hqq", "sym"), (_FOUR, _ONE)),
    6: Width("hqq6-g128", ("hqq", "sym"), (_FOUR, _TWO)),
    8: Width("int8", ("hqq", "sym"), (_EIGHT,))}
"""Every bit-width below 16: formats, planes, consumers and the tests' lists follow from it."""
_DEFAULTS = {**{bits: width.default for bits, width in WIDTHS.items()}, 16: "fp16"}
BITS = tuple(_DEFAULTS)
"""Bit-widths that a unit may have."""
LEAST_BITS = min(BITS)

_INTEGER = {bits: width.planes for bits, width in WIDTHS.items() if width.planes}
PLANES: Mapping[str, Mapping[int, tuple[Plane, ...]]] = {
    "hqq": {**{bits: width.planes for bits, width in WIDTHS.items() if "hqq" in width.kinds}, 3: (Plane(3, 10, 4),)},
    "integer": _INTEGER, ORDERED: _INTEGER}
"""Planes of each bit-width of a backend. HQQ's library has a packing of its own for 3 bits, and keeps codes of 5 and of
6 bits in whole bytes, which saves nothing."""


LONGEST_RING, SHORTEST_RING, RING_STEP = 256, 128, 8
"""Bounds of a ring of trellis codes, and its unit: eight codes of any bit-width fill whole bytes."""


RINGS_NUMEL, RING_BYTES = 1 << 27, 24
"""Weights whose trellis codes are chosen at a time, and the bytes that each takes meanwhile."""


def ring_length(out_features: int) -> int:
    """Return the outputs that a ring of trellis codes holds: the largest divisor of ``out_features`` from 128 to 256
    that is a multiple of 8; where there is none, a length to which outputs are padded.

    >>> ring_length(576), ring_length(4864), ring_length(100)
    (192, 256, 104)
    """
    for length in range(LONGEST_RING, SHORTEST_RING - 1, -RING_STEP):
        if out_features % length == 0:
            return length
    return min(LONGEST_RING, max(2 * RING_STEP, -(-out_features // RING_STEP) * RING_STEP))


def rings_of(out_features: int) -> int:
    """Return how many rings of trellis codes hold a column of ``out_features`` weights."""
    return -(-out_features // ring_length(out_features))


def planes_of(fmt: StorageFormat) -> tuple[Plane, ...]:
    """Return the planes of a format, the upper bits first; none where its codes are not packed in planes."""
    return PLANES.get(fmt.backend, {}).get(fmt.bits, ())


def padded_groups(planes: tuple[Plane, ...], groups: int) -> int:
    """Return ``groups`` rounded up to whole words of every plane, so that planes divide groups into equal runs."""
    per_word = max(plane.per_word for plane in planes)
    return -(-groups // per_word) * per_word


def has_zeros(fmt: StorageFormat) -> bool:
    """Whether an integer format stores a zero for every group; else it is the middle code, ``2^(bits - 1)``."""
    return fmt.backend == ORDERED or (fmt.backend == "integer" and fmt.name.startswith("int"))


BACKENDS: Mapping[str, str] = {
    "bitsandbytes": "qra_bo.finetune.quantization.bnb:BitsAndBytesBackend",
    "hqq": "qra_bo.finetune.quantization.half_quadratic:HQQBackend",
    BACKEND: "qra_bo.finetune.quantization.stored:StoredBackend",
    OTHER: "qra_bo.finetune.quantization.stored:StoredBackend",
    TILES: "qra_bo.finetune.quantization.exl3:Exl3Backend",
    "integer": "qra_bo.finetune.quantization.integer:IntegerBackend",
    ORDERED: "qra_bo.finetune.quantization.integer:OrderedBackend",
    "none": "qra_bo.finetune.quantization.base:UnquantisedBackend",
    "trellis": "qra_bo.finetune.quantization.trellis:TrellisBackend"}
"""Class that packs the formats of each backend; it is imported only where weights are packed."""


_NAMES = (("hqq{}", "hqq", 64), ("hqq{}-g32", "hqq", 32), ("hqq{}-g128", "hqq", 128), ("t{}", "trellis", 64),
          ("exl3-mul1-{}", TILES, 0),
          *((f"{kind}{{}}-g{group}", "integer", group) for kind in ("sym", "int") for group in (32, 64, 128)))
FORMATS: Mapping[str, StorageFormat] = {f.name: f for f in (
    StorageFormat("nf4", "bitsandbytes", 4, 64, double_quant=True), StorageFormat("nf4-nodq", "bitsandbytes", 4, 64),
    StorageFormat("int8", "bitsandbytes", 8, 0), StorageFormat("fp16", "none", 16, 0),
    *(StorageFormat(name.format(bits), backend, bits, block) for bits, width in WIDTHS.items()
      for name, backend, block in _NAMES if name[:3].rstrip("{}") in width.kinds))}
"""Every storage format by name that a search may name."""


def parse_format(name: str) -> StorageFormat:
    """Return the storage format called ``name``. Raises ``ConfigError`` if it is unknown; the message lists the known
    ones, nearest first."""
    if name in STORED_FORMATS:
        return STORED_FORMATS[name]
    if name not in FORMATS:
        raise ConfigError(f"unknown storage format {name!r}; known, nearest first: "
                          f"{', '.join(nearest_first(name, FORMATS))}")
    return FORMATS[name]


def default_format(bits: int) -> StorageFormat:
    """Return the format of a bit-width where the configuration names none. Raises ``ConfigError`` if no backend offers
    the bit-width."""
    if bits not in _DEFAULTS:
        raise ConfigError(f"no backend stores weights in {bits} bits; choose from {sorted(BITS)}")
    return FORMATS[_DEFAULTS[bits]]


def format_from_json(data: Mapping[str, Any]) -> StorageFormat:
    """Inverse of ``dataclasses.asdict``; the facts must be those of the format of that name. Raises ``ConfigError``
    if the format is unknown, or its facts differ from those in this release."""
    fmt = parse_format(str(data.get("name")))
    if asdict(fmt) != dict(data):
        raise ConfigError(f"the storage format {fmt.name!r} is recorded as {dict(data)}, this release knows it as "
                          f"{asdict(fmt)}")
    return fmt


def check_shape(fmt: StorageFormat, out_features: int, in_features: int) -> None:
    """Refuse a matrix that the backend can't pack. Raises ``SpaceError`` if the weights (of the whole matrix, or of a
    row) do not divide into whole groups, or HQQ's groups not into whole words."""
    planes = planes_of(fmt) if fmt.backend == "hqq" and fmt.bits != 3 else ()
    per_word = max((plane.per_word for plane in planes), default=1)
    multiple = 2 if fmt.backend == "bitsandbytes" and fmt.bits == 4 else fmt.block * per_word
    by_row = fmt.backend in ("bitsandbytes", "integer", "trellis", BACKEND, ORDERED)
    divisor = in_features if by_row else out_features * in_features
    if multiple and divisor % multiple:
        what = "columns" if by_row else "weights"
        raise SpaceError(f"{fmt.name} packs {what} in multiples of {multiple}; a {out_features} x {in_features} matrix "
                         f"has {divisor}: choose another format for this bit-width, or leave the layer at fp16")


def matrix_bytes(fmt: StorageFormat, out_features: int, in_features: int) -> tuple[int, int]:
    """Return the bytes of the packed codes of one ``out_features x in_features`` matrix, and those of its scales, zeros
    and offsets. Raises ``SpaceError`` if the backend can't pack a matrix of this shape."""
    check_shape(fmt, out_features, in_features)
    numel = out_features * in_features
    codes, blocks = numel * fmt.bits // 8, -(-numel // (fmt.block or in_features))
    if planes := planes_of(fmt):
        groups = padded_groups(planes, numel // fmt.block)
        codes = sum(groups // plane.per_word * plane.word_bytes * fmt.block for plane in planes)
    if fmt.backend == "none":
        return codes, 0
    if fmt.backend == BACKEND:
        kind = TYPES[fmt.name]
        return codes, numel // kind.weights * kind.size - codes
    if fmt.backend == TILES:
        rows, columns = in_strips(out_features), in_strips(in_features)
        return rows * columns * EXL3[fmt.name].half_bits // 16, 2 * (rows + columns)
    if fmt.backend == "trellis":
        rings = rings_of(out_features) * ring_length(out_features) * in_features
        return rings * fmt.bits // 8, out_features * (2 + -(-in_features // (2 * fmt.block)))
    if fmt.backend in ("integer", ORDERED):
        return codes, (3 if has_zeros(fmt) else 2) * blocks + 4 * in_features * (fmt.backend == ORDERED)
    return codes, blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 if fmt.double_quant else 4 * blocks


def table_bytes(fmt: StorageFormat) -> int:
    """Bytes of the tables that all layers of a trellis format share: values of its states, and the rotation."""
    return 2 << 14 if fmt.backend == "trellis" else 0


_TILE_NUMEL = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Weights that the quantiser backends unpack at a time (``finetune.quantization.base.tile_numel``)."""


def strips_at_once(width: int, device: str) -> int:
    """Return how many strips of a matrix of EXL3 with ``width`` inputs are unpacked at a time."""
    return max(1, _TILE_NUMEL[device] // (STRIP * width))


def scratch_bytes(fmt: StorageFormat, out_features: int, in_features: int, device: str, compute_bytes: int) -> int:
    """Bytes that a backend needs, beside the dense weight, while it unpacks one matrix.

    Args:
        fmt: Storage format.
        out_features: Rows of the matrix.
        in_features: Its columns.
        device: ``"cpu"`` or ``"cuda"``.
        compute_bytes: Bytes of a weight in the compute type.
    """
    numel, tile = out_features * in_features, _TILE_NUMEL[device]
    if fmt.backend == "none":
        return 0
    if planes := planes_of(fmt):
        tile = min(tile, padded_groups(planes, numel // fmt.block) // planes[-1].per_word * fmt.block)
        # A field is shifted, then masked; those above it are alive meanwhile.
        field = 0 if planes[0].per_word == 1 else (3 if len(planes) > 1 else 2) * tile * planes[0].word_bytes
        sorted_copy = compute_bytes * numel if fmt.backend == ORDERED else 0  # the weight before columns are in order
        return field + (4 * tile if compute_bytes == 2 else 0) + 4 * tile // fmt.block + sorted_copy
    if fmt.backend == "trellis":  # ring by ring, in fp32: values beside what they are made from, then beside weights
        run = ring_length(out_features) * in_features
        return int(max(8.0, 4 + 1.5 * fmt.bits) * run) + run // 8 + (1 << 14)
    if fmt.backend == TILES:
        width, strips = in_strips(in_features), in_strips(out_features) // STRIP
        return 8 * min(strips, strips_at_once(width, device)) * STRIP * width
    if fmt.backend == BACKEND:
        return min(tile, numel) * 11 // 2  # measured: 4.0 to 6.1
    if fmt.bits == 4:
        return 4 * numel // fmt.block if fmt.double_quant else 0
    return 4 * out_features + (4 * min(max(tile, in_features), numel) if device == "cpu" else 0)
