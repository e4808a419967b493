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
| `exllamav3`    | EXL3's of `mul1`                  | those of `memory.formats`                                       |

All load 16 bits. compressed-tensors holds codes of 1 to 8 bits, and 0.18 to 0.20 read no integer zeros. MLX keeps a
bias of ``-zero * scale`` in 16 bits, which is exact where the zero has at most 3 bits beside the 8 of the scale, or is
a power of two. vLLM fuses projections of one input (q, k, v; gate, up), so that these must be alike; its release 0.32
multiplies by 4 and 8 bits on every GPU, by the other widths with its Humming kernels (CUDA), by 4 bits on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from qra_bo.memory.budget import uniform_bytes
from qra_bo.memory.embeddings import packed_tables_bytes, table_numel
from qra_bo.memory.file_formats import TILES
from qra_bo.memory.formats import BITS, WIDTHS, check_shape, default_format, has_zeros, matrix_bytes, parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.stored import own_format, stored_note
from qra_bo.space import Allocation, SearchSpace
from qra_bo.space.decoder import MIXTURES
from qra_bo.space.space import GRANULARITIES, StorageFormat
from qra_bo.utils.errors import ConfigError

ANY = "any"
WITHOUT_EXPERTS = ("compressed_tensors", "mlx", "exl3")
"""Exports that have no form for a mixture of experts."""
_SYMMETRIC, _ZEROS, _TILES = "sym", "int", "exl"
MLX_BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
"""Bit-widths that MLX has kernels for, and sizes of groups that all programs have."""
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank``."""
_GGUF_BLOCK = 32
"""Weights of a block of a GGUF type."""
_GGUF_BITS = {"integer": (4, 5, 8), "hqq": (4, 5)}
"""Code bits of the GGUF types by backend: Q4_0, Q5_0 and Q8_0; with an offset Q4_1 and Q5_1."""


def gguf_bits(fmt: StorageFormat) -> int | None:
    """Return the code bits of the GGUF type that holds a format below 16 bits, ``None`` where there is none.

    Codes of an integer format are kept less their zeros, with a sign: these differences need a bit more where the zero
    is not the middle code.
    """
    least, whole = fmt.bits + (fmt.backend == "integer" and has_zeros(fmt)), fmt.block % _GGUF_BLOCK == 0
    return next((bits for bits in _GGUF_BITS.get(fmt.backend, ()) if bits >= least and whole), None)


def in_mlx(fmt: StorageFormat) -> bool:
    """Return whether MLX holds a format, exactly or with a rounded bias."""
    kept = fmt.backend in ("integer", "hqq") and fmt.bits in MLX_BITS and fmt.block in GROUPS
    return fmt.backend == "none" or kept


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that serves exported models.

    Args:
        name: Value of ``serve``.
        title: Its name for people.
        kinds: Bit-widths by kind of format (as in ``WIDTHS``: ``sym``, ``int``, ``exl``) that it loads exactly.
        granularities: Units of which it can serve every allocation.
        group_bytes: Bytes of codes and of metadata of one group of an integer format; ``None``: as this package's.
        families: ``model_type`` of the decoders that its export covers; empty for any.
        exports: Export targets (``export.registry``) that it loads.
        default: Name of its format of a bit-width where the configuration names none.
    """

    name: str
    title: str
    kinds: Mapping[str, tuple[int, ...]]
    granularities: tuple[str, ...] = GRANULARITIES
    group_bytes: Callable[[StorageFormat], tuple[int, int]] | None = None
    families: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    default: str = "sym{}-g64"

    def loads(self, fmt: StorageFormat) -> bool:
        """Return whether it loads weights of that format exactly."""
        return not self.kinds or fmt.backend == "none" or (
            fmt.backend in ("integer", TILES) and fmt.bits in self.kinds.get(fmt.name[:3], ()))

    def check_family(self, family: str) -> None:
        """Raise ``ConfigError`` if its export does not cover decoders of a family."""
        if family not in self.families:
            raise ConfigError(f"the export {self.exports[0]} covers models of {', '.join(self.families)}; this one is "
                              f"of {family!r}: choose another base model, or export.targets=[merged], 16-bit weights "
                              "for programs that know it")

    @property
    def widths(self) -> tuple[int, ...]:
        """Bit-widths that it loads exactly, in some format."""
        return tuple(bits for bits in BITS if not self.kinds or bits in (16, *chain(*self.kinds.values())))

    @property
    def loaded(self) -> str:
        """The formats that it loads exactly, in words."""
        names = [self.default.format(bits).replace(_SYMMETRIC, kind).removesuffix("-g64")
                 for kind, widths in self.kinds.items() for bits in widths]
        groups = ", each with -g32, -g64 or -g128" * (_SYMMETRIC in self.kinds)
        return f"{', '.join(names)}{groups}, and fp16"

    def matrix_bytes(self, fmt: StorageFormat, out_features: int, in_features: int) -> tuple[int, int]:
        """Return the bytes of codes and of metadata of one ``out_features x in_features`` matrix in its files.

        Formats that it does not load (references of a comparison) have this package's bytes, and so has 16 bits. Raises
        ``SpaceError`` if the format can't store a matrix of this shape.
        """
        if self.group_bytes is None or fmt.backend != "integer" or not self.loads(fmt):
            return matrix_bytes(fmt, out_features, in_features)
        check_shape(fmt, out_features, in_features)
        groups = out_features * in_features // fmt.block
        codes, metadata = self.group_bytes(fmt)
        return groups * codes, groups * metadata

    def default_format(self, bits: int) -> StorageFormat:
        """Return its format of a bit-width where the configuration names none."""
        free = not self.kinds or bits == 16
        return default_format(bits) if free else parse_format(self.default.format(bits))


def _packed(fmt: StorageFormat) -> tuple[int, int]:
    return fmt.bits * fmt.block // 8, 2


_SYM, _INT = (tuple(bits for bits, width in WIDTHS.items() if kind in width.kinds) for kind in (_SYMMETRIC, _ZEROS))
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "seed_oss", "olmo2")
"""Decoders whose exports ``gguf`` and ``mlx`` were compared with transformers."""
CONSUMERS: Mapping[str, Consumer] = {c.name: c for c in (
    Consumer(ANY, "any program", {}),
    Consumer("transformers", "transformers", {_SYMMETRIC: _SYM}, group_bytes=_packed, exports=("compressed_tensors",)),
    Consumer("vllm", "vLLM", {_SYMMETRIC: _SYM}, ("layer", "block", "fused"), _packed,
             exports=("compressed_tensors", "vllm")),
    Consumer("llamacpp", "llama.cpp", {_SYMMETRIC: _SYM, _ZEROS: tuple(b for b in _INT if b < 8)},
             group_bytes=lambda fmt: ((gguf_bits(fmt) or 0) * fmt.block // 8, 2 * fmt.block // _GGUF_BLOCK),
             families=(*_FAMILIES, *MIXTURES), exports=("gguf",)),
    Consumer("mlx", "MLX", {_SYMMETRIC: tuple(b for b in _SYM if b in MLX_BITS),
                            _ZEROS: tuple(b for b in _INT if b <= 3)},
             group_bytes=lambda fmt: (fmt.bits * fmt.block // 8, 4), families=_FAMILIES, exports=("mlx",)),
    Consumer("exllamav3", "exllamav3", {_TILES: tuple(b for b, width in WIDTHS.items() if _TILES in width.kinds)},
             families=_FAMILIES[:4], exports=("exl3",), default="exl3-mul1-{}"))}
"""By the value of ``serve``."""

EXPORT_TARGETS = ("card", "trl", "vllm", "compressed_tensors", "gguf", "mlx", "exl3", "merged")
"""Names of the exporters, whose package loads torch."""
REMOVED_TARGETS: Mapping[str, str] = dict.fromkeys(
    ("axolotl", "llamafactory"), "that trainer quantises every layer alike, and so trains another base than the run's; "
    "export.targets=[trl] writes a script that goes on with the run's own") | {
    "packed": "every run keeps packed.safetensors beside its manifest",
    "uniform_rank": "export.targets=[vllm] writes the adapter with one rank",
    "bitsandbytes": "serve=transformers searches 4 and 16 bits in formats that export.targets=[compressed_tensors] "
                    "holds, for transformers and vLLM alike; export.targets=[merged] writes a copy in 16 bits"}
"""By the name of a target that there is no more: what does its work."""
TARGET_FORMATS: Mapping[str, tuple[Callable[[StorageFormat], bool], str]] = {
    "compressed_tensors": (CONSUMERS["transformers"].loads, "serve=transformers"),
    "gguf": (lambda fmt: fmt.is_base or gguf_bits(fmt) is not None, "serve=llamacpp"),
    "mlx": (in_mlx, "serve=mlx"), "exl3": (lambda fmt: fmt.is_base or fmt.backend == TILES, "serve=exllamav3")}
"""By export target that holds some formats alone: whether it holds one, exactly or rounded, and what to search with."""


def serving_note(consumer: Consumer, memory: MemoryModel, space: SearchSpace) -> str:
    """Return one line on what loads the result: of a search for ``consumer`` the formats that it loads, with bit-widths
    of no use, which take as many bytes as a wider one; for any program those that load every format."""
    if memory.spec.linears[0].stored:
        return stored_note(memory.spec)
    if consumer.name == ANY:
        programs = [c for c in CONSUMERS.values() if c.kinds]
        able = [c.title for c in programs if all(map(c.loads, space.formats))]
        names = [f.name for f in space.formats]
        lost = [f.name for f in space.formats if not any(c.loads(f) for c in programs)] or names
        return f"The result is loaded by qra_bo.load, and exactly by {', '.join(able)} too." if able else \
            f"As it is, the result is loaded by qra_bo.load and, in Python, PEFT. No server has {', '.join(lost)}: " \
            "serve=NAME takes formats that one does, export.targets=[merged] unpacks to 16 bits."
    sizes = [(fmt.bits, uniform_bytes(memory, space, fmt, space.ranks[0])) for fmt in space.formats]
    useless = sorted({bits for bits, size in sizes if any(b > bits and s <= size for b, s in sizes)})
    kept = sorted({bits for bits, _ in sizes} - set(useless))
    advice = f" There {' and '.join(map(str, useless))} bits take as many bytes as wider ones: use bits=[" \
             f"{','.join(map(str, kept))}]." if useless else ""
    return f"serve={consumer.name}: {' '.join(fmt.name for fmt in space.formats)}, which {consumer.title} loads " \
           f"exactly.{advice}"


def gguf_bytes(memory: MemoryModel, space: SearchSpace, allocation: Allocation) -> dict[str, int]:
    """Return the bytes of all tensors in the files of the export ``gguf``, by file; names in ``export.gguf``.

    Headers come on top: the vocabulary, and an entry a tensor. Norms and biases have 32 bits there, adapters too; an
    embedding in 8 or 6 bits is stored as Q8_0, and merged files hold linears with an adapter as F16 or Q8_0. Gate and
    up of experts are apart, each with the LoRA A of both.
    """
    llamacpp, spec, tables = CONSUMERS["llamacpp"], memory.spec, 2 - memory.spec.tied
    formats = {fmt.name: fmt for fmt in space.formats}
    others = 4 * (spec.other_numel - tables * table_numel(spec))
    others += packed_tables_bytes(spec, 16) if spec.tables else tables * (
        2 * table_numel(spec) if memory.shape.embeddings == 16 else _q8_0(table_numel(spec)))
    base = half = byte = others
    adapter = 0
    for unit, name, rank in zip(space.units, allocation.formats, allocation.ranks, strict=True):
        for m in unit.linears:
            packed = sum(llamacpp.matrix_bytes(own_format(formats[name], m), m.out_features, m.in_features))
            parts = 1 + (m.expert and m.fused == "gateup")
            base += packed
            adapter += 4 * rank * (parts * m.in_features + m.out_features) * m.adapted
            half += 2 * m.numel if m.adapted else packed
            byte += packed if not m.adapted else 2 * m.numel if m.in_features % 32 else _q8_0(m.numel)
    served = {} if len(spec.linears[0].stored) == 1 else {"base": base}  # else it is the user's own file
    return {**served, "adapter": adapter, "merged-f16": half, "merged-q8_0": byte}


def _q8_0(numel: int) -> int:
    """Return the bytes of whole blocks of 32 codes of 8 bits with a scale of 16."""
    return numel * 34 // 32


def experts_problems(targets: Sequence[str], serve: str = ANY) -> list[str]:
    """Return why a mixture of experts can't be exported to some of ``targets``, or to what ``serve`` loads."""
    lost = [target for target in (*targets, *CONSUMERS[serve].exports) if target in WITHOUT_EXPERTS]
    return [f"export.targets and serve: {', '.join(dict.fromkeys(lost))} have no form for a mixture of experts; export "
            "gguf (serve=llamacpp), or merged in 16 bits, or load the run by qra_bo.load (serve=any)"] if lost else []


def server_rank(ranks: Sequence[int]) -> int:
    """Return the least ``--max-lora-rank`` of vLLM that takes an adapter of these ranks."""
    return next((n for n in SERVER_RANKS if n >= max(ranks)), max(ranks))
