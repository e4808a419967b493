"""Folders of transformers whose linears bitsandbytes (nf4), GPTQ, AWQ, compressed-tensors or exllamav3 (EXL3) packed:
their configuration and tensors, within the files' bounds.

Bits and groups of each linear follow from the shapes of its tensors, so that a folder may mix them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from qra_bo.finetune.models.files import CONFIG, INERT, check_alike, check_model_files, quantization_marks, weight_files
from qra_bo.memory.file_formats import CODEBOOKS, STORED_FORMATS, in_strips
from qra_bo.memory.formats import FORMATS, NESTED_BLOCK
from qra_bo.memory.stored import with_stored
from qra_bo.space.decoder import DecoderSpec
from qra_bo.utils.errors import ModelError

HALF, FLOATS = ("F16", "BF16"), ("F16", "BF16", "F32")
NF4_BLOCK, QUANT_STATE = 64, "weight.quant_state.bitsandbytes__nf4"
LEAVES = ("qweight", "qzeros", "scales", "g_idx", "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
          "weight.nested_quant_map", QUANT_STATE, "weight_packed", "weight_scale", "weight_shape", "weight_zero_point",
          "weight_g_idx", "trellis", "suh", "svh", *CODEBOOKS)
"""Tensors of a packed linear beside its bias."""
_READ: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "bitsandbytes": {"load_in_8bit": (False, None), "bnb_4bit_quant_type": ("nf4",),
                     "bnb_4bit_quant_storage": ("uint8", None)},
    "gptq": {"checkpoint_format": ("gptq", "gptq_v2", None), "lm_head": (False, None)},
    "awq": {"version": ("gemm", "GEMM", None), "zero_point": (True, None)},
    "compressed-tensors": {"format": ("pack-quantized",), "kv_cache_scheme": (None,), "transform_config": (None, {})},
    "exl3": {},
    "config_groups": {"input_activations": (None,), "output_activations": (None,), "format": ("pack-quantized", None)},
    "weights": {"type": ("int",), "strategy": ("group",)}}
"""Fields and values that are read, of ``quantization_config`` by ``quant_method`` and of compressed-tensors' groups."""
METHODS = tuple(_READ)[:5]


class Stored(NamedTuple):
    """A tensor: the library's reader of its file, safetensors' name of its type, and its shape."""

    reader: Any
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedFolder:
    """A folder: ``quant_method`` and the other fields of its ``quantization_config``, and its tensors by name."""

    path: Path
    method: str
    options: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def packs(self, name: str) -> bool:
        """Whether a linear has EXL3's tiles; exllamav3 gives them to every head, also to one that shares its weights.
        """
        return f"{name}.trellis" in self.tensors

    def sides(self, name: str, kinds: Sequence[str], *shape: int | None) -> tuple[int, ...]:
        """Return the shape of a tensor; raises ``ModelError`` unless it is of one of ``kinds`` and of ``shape``, where
        ``None`` is any size."""
        found = self.tensors.get(name)
        if found is None or found.kind not in kinds or len(found.shape) != len(shape) or any(
                side not in (None, own) for side, own in zip(shape, found.shape, strict=True)):
            has = "none" if found is None else f"{list(found.shape)} of the type {found.kind}"
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ModelError(f"{self.path} should hold {name} of the shape [{wanted}] and the type "
                             f"{' or '.join(kinds)}; it has {has}: choose another model, or copy a damaged one again")
        return found.shape


def packed_folder(folder: Path) -> PackedFolder:
    """Read the configuration and the headers of a folder; raises ``ModelError`` if its weights are not packed, packed
    in a way that is not read here, or damaged."""
    check_model_files(folder, folder.name)
    marks = quantization_marks(folder)
    method = str(marks.get("quant_method"))[:40] if isinstance(marks, dict) else "none"
    if method not in METHODS:
        raise ModelError(f"codes=stored trains on a GGUF file, or on a folder whose {CONFIG} has a quantization_config "
                         f"with quant_method {', '.join(METHODS)}; {folder} has quant_method={method}")
    _check(folder, method, marks)
    groups = marks.get("config_groups") if method == "compressed-tensors" else {}
    for group in groups.values() if isinstance(groups, dict) else [groups]:
        _check(folder, "config_groups", group)
        _check(folder, "weights", group.get("weights"))
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        try:
            reader: Any = safe_open(str(file), "pt")
            found = {name: Stored(reader, part.get_dtype(), tuple(part.get_shape()))
                     for name in sorted(reader.keys()) for part in [reader.get_slice(name)]}
        except Exception as error:  # of a damaged header the library raises anything
            raise ModelError(f"{file} can't be read as safetensors ({error}); copy or download it again") from error
        if twice := tensors.keys() & found.keys():
            raise ModelError(f"{file} holds {min(twice)}, which another file of the folder holds too; take one of them "
                             "out of it")
        tensors |= found
    return PackedFolder(folder, method, marks, tensors)


def _check(folder: Path, part: str, fields: Any) -> None:
    fields, read = (fields, _READ[part]) if isinstance(fields, dict) else ({part: fields}, {part: ()})
    for name, values in read.items():
        if (given := fields.get(name)) not in values:
            raise ModelError(f"quantization_config of {folder} has {name}={str(given)[:60]}, and codes=stored reads "
                             f"{' or '.join(map(str, values)) or 'an object'}: choose another model")


def folder_spec(spec: DecoderSpec, *folders: PackedFolder) -> DecoderSpec:
    """Return a decoder whose linears have the formats of folders, and the head, where it is packed, that of the first.
    Several are of EXL3 and of one model. Errors: those of ``format_in``, ``check_alike`` and ``with_stored``."""
    folder, *others = folders
    if others:
        if unlike := [f"{each.path} has {each.method}" for each in folders if each.method != "exl3"]:
            raise ModelError(f"several folders of one model are read of quant_method=exl3 alone, and {unlike[0]}: give "
                             "one folder")
        check_alike({each.path: _facts(each) for each in folders})
    spec = with_stored(spec, *([format_in(each, m.name, m.out_features, m.in_features) for m in spec.linears]
                               for each in folders))
    if not folder.packs("lm_head"):
        return spec
    sides = spec.vocab_size, spec.hidden_size
    return replace(spec, tables=(format_in(folder, "lm_head", *sides),), tied=False,
                   other_numel=spec.other_numel + spec.tied * sides[0] * sides[1])


def _facts(folder: PackedFolder) -> dict[str, Any]:
    """Return what folders of one model have alike: configuration, tokenizer, norms and biases."""
    fields, tokens = json.loads((folder.path / CONFIG).read_text(encoding="utf-8")), folder.path / "tokenizer.json"
    own = INERT | {"_name_or_path", "quantization_config"}
    return {key: value for key, value in fields.items() if key not in own} | {
        tokens.name: tokens.read_bytes() if tokens.is_file() else None} | {
        name: tensor.reader.get_tensor(name).tolist() for name, tensor in folder.tensors.items()
        if len(tensor.shape) == 1 and not name.endswith((".suh", ".svh"))}


def format_in(folder: PackedFolder, name: str, rows: int, columns: int) -> str:
    """Return the storage format of the linear ``name``; raises ``ModelError`` if its tensors are not those of one."""
    def sides(leaf: str, kinds: Sequence[str], *shape: int | None) -> tuple[int, ...]:
        return folder.sides(f"{name}.{leaf}", kinds, *shape)

    def has(leaf: str) -> bool:
        return f"{name}.{leaf}" in folder.tensors

    options, words = folder.options, ("I32",)
    if has("weight") and folder.tensors[f"{name}.weight"].kind in HALF:
        sides("weight", HALF, rows, columns)
        return "fp16"
    if folder.method == "bitsandbytes":
        blocks, nested = -(-rows * columns // NF4_BLOCK), has("weight.nested_absmax")
        sides("weight", ("U8",), rows * columns // 2, 1)
        sides("weight.quant_map", ("F32",), 16)
        sides(QUANT_STATE, ("U8",), None)
        sides("weight.absmax", ("U8",) if nested else ("F32",), blocks)
        if nested:
            sides("weight.nested_absmax", ("F32",), -(-blocks // NESTED_BLOCK))
            sides("weight.nested_quant_map", ("F32",), 256)
        return "nf4" if nested else "nf4-nodq"
    if folder.method == "exl3":
        size = sides("trellis", ("I16",), in_strips(columns) // 16, in_strips(rows) // 16, None)[2]
        sides("suh", ("F16",), in_strips(columns))
        sides("svh", ("F16",), in_strips(rows))
        named = [book for book in CODEBOOKS if has(book)]
        for book in named:
            sides(book, ("I32",))
        fmt = f"exl3-{' and '.join(named) or '3inst'}-{size / 16:g}"
        if fmt not in STORED_FORMATS:
            raise ModelError(f"{name}.trellis of {folder.path} is {fmt}, with {size} words a tile, and codes=stored "
                             "reads one codebook with 1 to 8 bits, of mul1 also half ones: choose another model")
        return fmt
    if folder.method == "compressed-tensors":
        bits = 32 * sides("weight_packed", words, rows, None)[1] // columns
        groups = sides("weight_scale", HALF, rows, None)[1]
        unlike = [group["weights"].get("symmetric") is False for group in options["config_groups"].values()]
        zeros, ordered = has("weight_zero_point") or (bool(unlike) and all(unlike)), has("weight_g_idx")
        shapes: dict[str, tuple[int, ...]] = {"weight_packed": (rows, -(-columns * bits // 32)), "weight_shape": (2,)}
        shapes |= {"weight_zero_point": (-(-rows * bits // 32), groups)} if zeros else {}
        shapes |= {"weight_g_idx": (columns,)} if ordered else {}
    else:
        gptq = folder.method == "gptq"  # whose codes run along the inputs; AWQ's along the outputs
        bits = 32 * sides("qweight", words, None, None)[not gptq] // (columns if gptq else rows)
        groups, zeros = sides("scales", HALF, None, rows)[0], not (gptq and options.get("sym", True))
        ordered, out = gptq and bool(options.get("desc_act")), -(-rows * bits // 32)
        shapes = {"qweight": (-(-columns * bits // 32), rows) if gptq else (columns, out), "qzeros": (groups, out)}
        shapes |= {"g_idx": (columns,)} if gptq else {}
    group, given = columns // groups if groups and columns % groups == 0 else 0, options.get("bits")
    fmt = f"{'gidx' if ordered else 'int' if zeros else 'sym'}{bits}-g{group}"
    if fmt not in {**FORMATS, **STORED_FORMATS} or (given not in (None, bits) and not options.get("dynamic")):
        raise ModelError(f"{name} of {folder.path} has bits={bits} (its configuration: {str(given)[:20]}) and "
                         f"group_size={group}, with{'' if zeros or ordered else 'out'} zeros, and codes=stored reads "
                         "group_size=32, 64 and 128 with bits=2, 3, 4, and without zeros 5, 6 and 8: choose another "
                         "model")
    for leaf, shape in shapes.items():
        sides(leaf, ("I64", "I32") if leaf == "weight_shape" else words, *shape)
    return fmt
