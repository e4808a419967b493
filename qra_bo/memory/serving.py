"""Programs that serve a run's result: the formats that each loads exactly, and its bytes of them. No torch.

| `serve=`       | formats                           | bytes of a group of `g` weights of `b` bits in its files        |
|----------------|-----------------------------------|-----------------------------------------------------------------|
| `any`          | all                               | those of `memory.formats`                                       |
| `transformers` | symmetric                         | compressed-tensors: `b g / 8`, a 16-bit scale                   |
| `vllm`         | the same                          | the same                                                        |
| `llamacpp`     | the same, and integer zeros below | blocks of 32 with a 16-bit scale: Q4_0 (18 bytes) for 2 to 4    |
|                | 8 bits                            | bits, Q5_0 (22) for 5 bits and for 4 with zeros, Q8_0 (34)      |
| `mlx`          | symmetric of `MLX_BITS`, and      | `b g / 8`, a 16-bit scale and bias                              |
|                | integer zeros of 2 and 3 bits     |                                                                 |

All load 16 bits. compressed-tensors holds codes of 1 to 8 bits, and 0.18 to 0.20 read no integer zeros. MLX keeps a
bias of ``-zero * scale`` in 16 bits, which is exact where the zero has at most 3 bits beside the 8 of the scale, or is
a power of two. vLLM fuses projections of one input (q, k, v; gate, up), so that these must be alike; its release 0.32
multiplies by 4 and 8 bits on every GPU, by the other widths with its Humming kernels (CUDA), and by 4 bits alone on a
CPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

from qra_bo.memory.formats import (
    BITS,
    WIDTHS,
    check_shape,
    default_format,
    has_zeros,
    metadata_bytes,
    parse_format,
    weight_bytes,
)
from qra_bo.space.space import GRANULARITIES, StorageFormat

ANY = "any"
_SYMMETRIC, _ZEROS = "sym", "int"
MLX_BITS = (2, 3, 4, 5, 6, 8)
"""Bit-widths that MLX has kernels for."""
_GGUF_BLOCK = 32
"""Weights of a block of a GGUF type."""
_GGUF_BITS = {"integer": (4, 5, 8), "hqq": (4, 5)}
"""Code bits of the GGUF types by backend: Q4_0, Q5_0 and Q8_0; with an offset Q4_1 and Q5_1."""


def gguf_bits(fmt: StorageFormat) -> int | None:
    """Return the code bits of the GGUF type that holds a format below 16 bits, ``None`` where there is none.

    Codes of an integer format are kept less their zeros, with a sign: these differences need a bit more where the zero
    is not the middle code.
    """
    return next((bits for bits in _GGUF_BITS.get(fmt.backend, ()) if bits >= fmt.bits + has_zeros(fmt)), None)


def in_mlx(fmt: StorageFormat) -> bool:
    """Return whether MLX holds a format, exactly or with a rounded bias."""
    return fmt.backend == "none" or (fmt.backend in ("integer", "hqq") and fmt.bits in MLX_BITS)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that serves exported models.

    Args:
        name: Value of ``serve``.
        title: Its name for people.
        kinds: Bit-widths by kind of integer format (``sym``, ``int``) that it loads exactly.
        granularities: Units of which it can serve every allocation.
        group_bytes: Bytes of codes and of metadata of one group of an integer format; ``None``: as this package's.
        families: ``model_type`` of the decoders that its export covers; empty for any.
        exports: Export targets (``export.registry``) that it loads.
    """

    name: str
    title: str
    kinds: Mapping[str, tuple[int, ...]]
    granularities: tuple[str, ...] = GRANULARITIES
    group_bytes: Callable[[StorageFormat], tuple[int, int]] | None = None
    families: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()

    def loads(self, fmt: StorageFormat) -> bool:
        """Return whether it loads weights of that format exactly."""
        return not self.kinds or fmt.backend == "none" or (
            fmt.backend == "integer" and fmt.bits in self.kinds.get(_kind(fmt), ()))

    @property
    def widths(self) -> tuple[int, ...]:
        """Bit-widths that it loads exactly, in some format."""
        return tuple(bits for bits in BITS if not self.kinds or bits in (16, *chain(*self.kinds.values())))

    @property
    def loaded(self) -> str:
        """The formats that it loads exactly, in words."""
        names = [f"{kind}{bits}" for kind, widths in self.kinds.items() for bits in widths]
        return f"{', '.join(names)}, each with -g32, -g64 or -g128, and fp16"

    def default_format(self, bits: int) -> StorageFormat:
        """Return its format of a bit-width where the configuration names none."""
        free = not self.kinds or bits == 16
        return default_format(bits) if free else parse_format(f"{_SYMMETRIC}{bits}-g64")


def _kind(fmt: StorageFormat) -> str:
    return fmt.name[:3]


def _packed(fmt: StorageFormat) -> tuple[int, int]:
    return fmt.bits * fmt.block // 8, 2


def _gguf(fmt: StorageFormat) -> tuple[int, int]:
    bits = gguf_bits(fmt)
    assert bits is not None
    return bits * fmt.block // 8, 2 * fmt.block // _GGUF_BLOCK


def _mlx(fmt: StorageFormat) -> tuple[int, int]:
    return fmt.bits * fmt.block // 8, 4


_SYM, _INT = (tuple(bits for bits, width in WIDTHS.items() if kind in width.kinds) for kind in (_SYMMETRIC, _ZEROS))
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
"""Decoders whose exports ``gguf`` and ``mlx`` were compared with transformers."""
CONSUMERS: Mapping[str, Consumer] = {c.name: c for c in (
    Consumer(ANY, "any program", {}),
    Consumer("transformers", "transformers", {_SYMMETRIC: _SYM}, group_bytes=_packed, exports=("compressed_tensors",)),
    Consumer("vllm", "vLLM", {_SYMMETRIC: _SYM}, ("layer", "block", "fused"), _packed,
             exports=("compressed_tensors", "vllm")),
    Consumer("llamacpp", "llama.cpp", {_SYMMETRIC: _SYM, _ZEROS: tuple(b for b in _INT if b < 8)}, group_bytes=_gguf,
             families=_FAMILIES, exports=("gguf",)),
    Consumer("mlx", "MLX", {_SYMMETRIC: tuple(b for b in _SYM if b in MLX_BITS),
                            _ZEROS: tuple(b for b in _INT if b <= 3)}, group_bytes=_mlx,
             families=_FAMILIES, exports=("mlx",)))}
"""By the value of ``serve``."""

EXPORT_TARGETS = ("card", "axolotl", "trl", "llamafactory", "vllm", "uniform_rank", "packed", "compressed_tensors",
                  "gguf", "mlx", "merged", "bitsandbytes")
"""Names of the exporters, whose package loads torch."""
TARGET_FORMATS: Mapping[str, tuple[Callable[[StorageFormat], bool], str]] = {
    "compressed_tensors": (CONSUMERS["transformers"].loads, "serve=transformers"),
    "gguf": (lambda fmt: fmt.backend == "none" or gguf_bits(fmt) is not None, "serve=llamacpp"),
    "mlx": (in_mlx, "serve=mlx"),
    "bitsandbytes": (lambda fmt: fmt.name in ("nf4", "fp16"), "bits=[4,16] and no other formats")}
"""By export target that holds some formats alone: whether it holds one, exactly or rounded, and what to search with."""


def served_bytes(serve: str, fmt: StorageFormat, out_features: int, in_features: int) -> tuple[int, int]:
    """Return the bytes of codes and of metadata of one ``out_features x in_features`` matrix in a consumer's files.

    Formats that it does not load (references of a comparison) have this package's bytes, and so has 16 bits. Raises
    ``SpaceError`` if the format can't store a matrix of this shape.
    """
    consumer = CONSUMERS[serve]
    if consumer.group_bytes is None or fmt.backend != "integer" or not consumer.loads(fmt):
        return weight_bytes(fmt, out_features, in_features), metadata_bytes(fmt, out_features, in_features)
    check_shape(fmt, out_features, in_features)
    groups = out_features * in_features // fmt.block
    codes, metadata = consumer.group_bytes(fmt)
    return groups * codes, groups * metadata
