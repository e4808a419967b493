"""Storage formats, and the bytes of each: pure arithmetic that equals, to the byte, what the real libraries store.

``BACKENDS`` holds all that planning knows of a backend. Look-up tables (of NF4, double quantisation: 1,088 bytes; of
trellis codes: ``Backend.table_bytes``) are shared by all layers and not counted to any of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from operator import attrgetter
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
    4: Width("nf4", ("hqq", "sym", "int", "t", "exl"), (_FOUR,)), 5: Width("hqq5-g128", ("hqq", "sym"), (_FOUR, _ONE)),
    6: Width("hqq6-g128", ("hqq", "sym"), (_FOUR, _TWO)), 8: Width("int8", ("hqq", "sym"), (_EIGHT,))}
"""Every bit-width below 16: formats, planes, consumers and the tests' lists follow from it."""
_DEFAULTS = {**{bits: width.default for bits, width in WIDTHS.items()}, 16: "fp16"}
BITS = tuple(_DEFAULTS)
"""Bit-widths that a unit may have."""
LEAST_BITS = min(BITS)

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


def padded_groups(planes: tuple[Plane, ...], groups: int) -> int:
    """Return ``groups`` rounded up to whole words of every plane, so that planes divide groups into equal runs."""
    per_word = max(plane.per_word for plane in planes)
    return -(-groups // per_word) * per_word


@dataclass(frozen=True, slots=True)
class Backend:
    """All that planning knows of a backend; what holds of few backends has a default.

    Args:
        packs: Class that packs its formats, as ``module:name``; it is imported only where weights are packed.
        stored: Returns the bytes of a matrix's codes (format, rows, columns), and of scales, zeros and offsets.
        scratch: Returns the bytes beside the dense weight while one is unpacked; ``scratch_bytes`` has the arguments.
        formats: Those that a search may name.
        by_row: Whether groups lie within rows, which then are whole groups; else the whole matrix is.
        multiple: What columns (``by_row``) or weights must be a multiple of, by format; 0: of nothing.
        planes: By bit-width, where ``planes.py`` packs codes of groups with a scale and a zero, the upper bits first.
        table_bytes: Of the tables that all layers share, where they are counted at all.
        ring_seconds: Core seconds of choosing a weight's code where codes depend on each other (``RingBackend``),
            measured on a CPU; 0 where they do not.
    """

    packs: str
    stored: Callable[[StorageFormat, int, int], tuple[int, int]]
    scratch: Callable[[StorageFormat, int, int, str, int], int]
    formats: tuple[StorageFormat, ...] = ()
    by_row: bool = True
    multiple: Callable[[StorageFormat], int] = attrgetter("block")
    planes: Mapping[int, tuple[Plane, ...]] = field(default_factory=dict)
    table_bytes: int = 0
    ring_seconds: float = 0.0


_TILE_NUMEL = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Weights that the quantiser backends unpack at a time (``finetune.quantization.base.tile_numel``)."""


def strips_at_once(width: int, device: str) -> int:
    """Return how many strips of a matrix of EXL3 with ``width`` inputs are unpacked at a time."""
    return max(1, _TILE_NUMEL[device] // (STRIP * width))


def _library_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """NF4: two codes a byte, fp32 absmax a block; doubly quantised 1 byte a block, fp32 absmax per 256 blocks, one fp32
    offset. int8: one byte a weight, unpacked to 16 bits; fp32 scale a row."""
    numel, blocks = rows * columns, -(-rows * columns // (fmt.block or columns))
    metadata = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 if fmt.double_quant else 4 * blocks
    return numel * fmt.bits // 8, metadata


def _library_scratch(fmt: StorageFormat, rows: int, columns: int, device: str, compute_bytes: int) -> int:
    numel = rows * columns
    if fmt.bits == 4:
        return 4 * numel // fmt.block if fmt.double_quant else 0
    return 4 * rows + (4 * min(max(_TILE_NUMEL[device], columns), numel) if device == "cpu" else 0)


def _hqq_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """HQQ: 2, 4, 8 bits in bytes; 3 bits: 10 codes an int32; 5, 6 bits: upper 4 bits and lower 1 or 2 apart. 16-bit
    scale and zero a group."""
    planes, groups = planes_of(fmt), rows * columns // fmt.block
    padded = padded_groups(planes, groups)
    return sum(padded // plane.per_word * plane.word_bytes * fmt.block for plane in planes), 4 * groups


def _integer_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """Integers: as HQQ, but for 3 bits: upper 2 and lower 1. 16-bit scale a group of a row's columns; ``int`` and
    ``ordered``: one byte of zero beside it; ``ordered``, whose columns come in any order: 4 bytes a column."""
    metadata = (3 if has_zeros(fmt) else 2) * (rows * columns // fmt.block)
    return _hqq_bytes(fmt, rows, columns)[0], metadata + 4 * columns * (fmt.backend == ORDERED)


def _planes_scratch(fmt: StorageFormat, rows: int, columns: int, device: str, compute_bytes: int) -> int:
    planes, numel = planes_of(fmt), rows * columns
    words = padded_groups(planes, numel // fmt.block) // planes[-1].per_word
    tile = min(_TILE_NUMEL[device], words * fmt.block)
    # A field is shifted, then masked; those above it are alive meanwhile.
    shifted = 0 if planes[0].per_word == 1 else (3 if len(planes) > 1 else 2) * tile * planes[0].word_bytes
    sorted_copy = compute_bytes * numel if fmt.backend == ORDERED else 0  # the weight before columns are in order
    return shifted + (4 * tile if compute_bytes == 2 else 0) + 4 * tile // fmt.block + sorted_copy


def _trellis_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """Trellis codes: bits / 8 bytes a weight, in rings of outputs. 16-bit scale a row; 4 bits a row and 64 columns."""
    codes = rings_of(rows) * ring_length(rows) * columns * fmt.bits // 8
    return codes, rows * (2 + -(-columns // (2 * fmt.block)))


def _trellis_scratch(fmt: StorageFormat, rows: int, columns: int, device: str, compute_bytes: int) -> int:
    run = ring_length(rows) * columns  # ring by ring, in fp32: values beside what makes them, then beside weights
    return int(max(8.0, 4 + 1.5 * fmt.bits) * run) + run // 8 + (1 << 14)


def _tiles_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """EXL3: bits / 8 bytes a weight, of sides padded to whole 128. 16-bit scale a row, and a column."""
    rows, columns = in_strips(rows), in_strips(columns)
    return rows * columns * EXL3[fmt.name].half_bits // 16, 2 * (rows + columns)


def _tiles_scratch(fmt: StorageFormat, rows: int, columns: int, device: str, compute_bytes: int) -> int:
    width, strips = in_strips(columns), in_strips(rows) // STRIP
    return 8 * min(strips, strips_at_once(width, device)) * STRIP * width


def _blocks_bytes(fmt: StorageFormat, rows: int, columns: int) -> tuple[int, int]:
    """GGUF: bits / 8 bytes a weight are its codes, the rest of a block (``file_formats``) is metadata."""
    if fmt.name not in TYPES:
        raise SpaceError(f"{fmt.name} stands for the formats of a file's linears, and has no bytes of its own")
    kind, codes = TYPES[fmt.name], rows * columns * fmt.bits // 8
    return codes, rows * columns // kind.weights * kind.size - codes


def _each(backend: str, groups: Mapping[str, int]) -> tuple[StorageFormat, ...]:
    """Return the formats of a backend, by name the weights of a group, of every width that has the kind of the name:
    its first letters, three at most."""
    return tuple(StorageFormat(name.format(bits), backend, bits, block) for bits, width in WIDTHS.items()
                 for name, block in groups.items() if name[:3].rstrip("{}") in width.kinds)


_HERE = "qra_bo.finetune.quantization"
_PLANES = {bits: width.planes for bits, width in WIDTHS.items() if width.planes}
_BLOCKS = Backend(f"{_HERE}.stored:StoredBackend", _blocks_bytes,
                  lambda fmt, rows, columns, device, _: min(_TILE_NUMEL[device], rows * columns) * 11 // 2)  # measured
BACKENDS: Mapping[str, Backend] = {
    "bitsandbytes": Backend(
        f"{_HERE}.bnb:BitsAndBytesBackend", _library_bytes, _library_scratch,
        (StorageFormat("nf4", "bitsandbytes", 4, 64, double_quant=True),
         StorageFormat("nf4-nodq", "bitsandbytes", 4, 64), StorageFormat("int8", "bitsandbytes", 8, 0)),
        multiple=lambda fmt: 2 * (fmt.bits == 4)),
    "none": Backend(f"{_HERE}.base:UnquantisedBackend", lambda fmt, rows, columns: (2 * rows * columns, 0),
                    lambda *matrix: 0, (StorageFormat("fp16", "none", 16, 0),)),
    "hqq": Backend(
        f"{_HERE}.half_quadratic:HQQBackend", _hqq_bytes, _planes_scratch,
        _each("hqq", {"hqq{}": 64, "hqq{}-g32": 32, "hqq{}-g128": 128}), by_row=False,
        multiple=lambda fmt: fmt.block * (1 if fmt.bits == 3 else max(plane.per_word for plane in planes_of(fmt))),
        planes={**_PLANES, 3: (Plane(3, 10, 4),)}),  # its library keeps codes of 5 and 6 bits in whole bytes
    "trellis": Backend(
        f"{_HERE}.trellis:TrellisBackend", _trellis_bytes, _trellis_scratch, _each("trellis", {"t{}": 64}),
        table_bytes=2 << 14, ring_seconds=5.5e-7),  # values of its states, and the rotation
    TILES: Backend(f"{_HERE}.exl3:Exl3Backend", _tiles_bytes, _tiles_scratch, _each(TILES, {"exl3-mul1-{}": 0}),
                   ring_seconds=7e-6),
    "integer": Backend(
        f"{_HERE}.integer:IntegerBackend", _integer_bytes, _planes_scratch,
        _each("integer", {f"{kind}{{}}-g{group}": group for kind in ("sym", "int") for group in (32, 64, 128)}),
        planes=_PLANES),
    ORDERED: Backend(f"{_HERE}.integer:OrderedBackend", _integer_bytes, _planes_scratch, planes=_PLANES),
    BACKEND: _BLOCKS, OTHER: _BLOCKS}
"""By the name that formats have."""
FORMATS: Mapping[str, StorageFormat] = {fmt.name: fmt for backend in BACKENDS.values() for fmt in backend.formats}
"""Every storage format by name that a search may name."""


def known_backend(fmt: StorageFormat) -> Backend:
    """Return what planning knows of a format's backend. Raises ``ConfigError`` if ``BACKENDS`` lacks it."""
    if fmt.backend not in BACKENDS:
        raise ConfigError(f"the storage format {fmt.name!r} names the backend {fmt.backend!r}, which BACKENDS of "
                          f"qra_bo/memory/formats.py lacks; it has {', '.join(BACKENDS)}: add it there")
    return BACKENDS[fmt.backend]


def planes_of(fmt: StorageFormat) -> tuple[Plane, ...]:
    """Return the planes of a format, the upper bits first; none where its codes are not packed in planes."""
    return known_backend(fmt).planes.get(fmt.bits, ())


def has_zeros(fmt: StorageFormat) -> bool:
    """Whether a format in planes stores a zero for every group; ``sym`` has the middle code, ``2^(bits - 1)``."""
    return not (fmt.backend == "integer" and fmt.name.startswith("sym"))


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
    """Return a bit-width's format where none is named. Raises ``ConfigError`` if no backend offers the bit-width."""
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
    backend = known_backend(fmt)
    multiple, divisor = backend.multiple(fmt), in_features if backend.by_row else out_features * in_features
    if multiple and divisor % multiple:
        what = "columns" if backend.by_row else "weights"
        raise SpaceError(f"{fmt.name} packs {what} in multiples of {multiple}; a {out_features} x {in_features} matrix "
                         f"has {divisor}: choose another format for this bit-width, or leave the layer at fp16")


def matrix_bytes(fmt: StorageFormat, out_features: int, in_features: int) -> tuple[int, int]:
    """Return the bytes of the packed codes of one ``out_features x in_features`` matrix, and those of its scales, zeros
    and offsets. Raises ``SpaceError`` if the backend can't pack a matrix of this shape."""
    check_shape(fmt, out_features, in_features)
    return known_backend(fmt).stored(fmt, out_features, in_features)


def scratch_bytes(fmt: StorageFormat, out_features: int, in_features: int, device: str, compute_bytes: int) -> int:
    """Return the bytes that a backend needs, beside the dense weight, while it unpacks one matrix; ``device`` is
    ``"cpu"`` or ``"cuda"``, ``compute_bytes`` those of a weight in the compute type."""
    return known_backend(fmt).scratch(fmt, out_features, in_features, device, compute_bytes)
