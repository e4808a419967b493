"""Header of a GGUF file: types and shapes of its tensors, all within the file's bounds. No torch."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qra_bo.finetune.models.files import check_alike
from qra_bo.memory.file_formats import TYPES
from qra_bo.memory.stored import with_stored
from qra_bo.space.decoder import MOST_LAYERS, DecoderSpec
from qra_bo.utils.errors import ModelError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROPE = "rope_freqs.weight"
"""Divisors of the rotary embedding's frequencies, by which llama.cpp stretches Llama 3.1's context."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Those whose models transformers computes from the header as llama.cpp does: others leave out keys of theirs."""
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


class QuickReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf has no types
    """gguf's reader over a plain view of the mapped file: a slice of a memmap takes thrice the time, and every token is
    two. It raises ``ValueError`` beyond the file's end, where gguf's own may count on for ever."""

    def __init__(self, path: str, mode: Any = "c") -> None:
        super().__init__(path, mode)

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data = mapped.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        found = super()._get(offset, dtype, count, override_order)
        if len(found) < count:
            raise ValueError("it ends too early")
        return found


@dataclass(frozen=True, slots=True)
class Header:
    """Values of a file's first part by key (of lists a checksum), and gguf's tensors of all its parts, by name."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture"))

    def value(self, key: str, usual: Any) -> Any:
        """Return what the file says of its architecture's key, ``usual`` where it says nothing."""
        return self.values.get(f"{self.architecture}.{key}", usual)


def parts_of(name: str | None) -> list[str]:
    """Return the names of all parts of a GGUF file of this name; none without a file.

    >>> parts_of("m-00001-of-00002.gguf")
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    m = _PART.fullmatch(name or "")
    return [f"{m[1]}-{i:05d}-of-{m[2]}.gguf" for i in range(1, int(m[2]) + 1)] if m else [name] if name else []


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file, of all its parts; raises ``ModelError`` if one is missing or damaged."""
    header, names = Header(path, {}, {}), parts_of(path.name)
    for part in map(path.with_name, names):
        try:
            values, tensors = _read(part, part.stat().st_mtime_ns)
            if twice := header.tensors.keys() & tensors.keys():
                raise ValueError(f"another part holds {min(twice)} too")
            if (count := values.get("split.count", 0)) > max(1, len(names)):
                raise ValueError(f"it is one of {count} parts, which are named NAME-00001-of-{count:05d}.gguf ...")
        except Exception as error:  # of a damaged file gguf raises anything
            raise ModelError(f"{part} can't be read as a GGUF file ({error}); copy or download it again") from error
        header = Header(path, header.values or values, {**header.tensors, **tensors})
    return header


def stored_header(path: Path) -> Header:
    """Return the header of a file for ``codes=stored``; raises ``ModelError`` if its architecture is not covered."""
    header = read_header(path)
    if header.architecture not in ARCHITECTURES:
        raise ModelError(f"{path} holds a model of the architecture {header.architecture}; codes=stored reads "
                         f"{', '.join(ARCHITECTURES)}: choose another model, or leave codes=stored out")
    return header


def check_rotary(model: Any, header: Header) -> None:
    """Raise ``ModelError`` if transformers computes the attention of a GGUF file otherwise than llama.cpp."""
    config, turned = model.config, 2 * len(getattr(getattr(model.get_decoder(), "rotary_emb", None), "inv_freq", ()))
    wanted, scaling = header.value("rope.dimension_count", turned), header.value("rope.scaling.type", "none")
    width = getattr(config, "head_dim", None)  # transformers gives each Gemma the scale of heads of 256
    if ((turned and wanted != turned) or getattr(config, "query_pre_attn_scalar", width) != width
            or (scaling != "none" and scaling not in str(getattr(config, "rope_parameters", None)))):
        raise ModelError(f"{header.path} turns {wanted} columns of a head of {width}, scaled by {scaling!r}, and "
                         f"transformers reads {config.model_type} otherwise; choose another model, or a folder of it")


@cache
def _read(path: Path, _changed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.is_file():  # a pipe would wait for ever
        raise ValueError("it is a folder, a pipe or a device")
    # Within ``reading_gguf`` the file is parsed already.
    reader = (QuickReader if isinstance(gguf.GGUFReader, type) else gguf.GGUFReader)(str(path))
    values: dict[str, Any] = {name: field.contents() if len(field.data) == 1 else hashlib.sha256(
        reader.data[field.offset:field.offset + sum(part.nbytes for part in field.parts)]).hexdigest()
        for name, field in reader.fields.items()}
    if any(n > MOST_LAYERS for name, n in values.items() if name.endswith(".block_count")):  # each would be listed
        raise ValueError(f"it states more than {MOST_LAYERS} layers")
    return values, {tensor.name: tensor for tensor in reader.tensors}


def stored_spec(spec: DecoderSpec, header: Header, *others: Header) -> DecoderSpec:
    """Return a decoder whose linears and tables have the types of a file; its linears also those of ``others``, which
    differ from it in nothing but the codes of matrices. Errors: of ``tensor_of``, ``check_alike``, ``with_stored``."""
    def kind(header: Header, module: str, *shape: int) -> str:
        return str(tensor_of(header, spec.n_layers, f"{module}.weight", shape).tensor_type.name)

    same = "general.architecture", f"{header.architecture}.", "tokenizer.ggml."
    check_alike({file.path: {key: value for key, value in file.values.items() if key.startswith(same)} | {
        name: tensor.data.tolist() for name, tensor in file.tensors.items() if len(tensor.shape) == 1}
        for file in (header, *others)})
    if spec.tied == (HEAD in header.tensors):
        raise ModelError(f"{header.path} has {'a' if spec.tied else 'no'} head of its own, and {spec.name!r} says "
                         "otherwise; mend its numbers, or use +model=hf model.path=FILE.gguf")
    tables = ("model.embed_tokens", "lm_head")[:2 - spec.tied]
    spec = replace(spec, tables=tuple(kind(header, name, spec.vocab_size, spec.hidden_size) for name in tables))
    return with_stored(spec, *([kind(file, m.name, m.out_features, m.in_features) for m in spec.linears]
                               for file in (header, *others)))


def tensor_of(header: Header, n_layers: int, name: str, shape: Sequence[int], types: Sequence[str] = tuple(TYPES)) \
        -> Any:
    """Return the tensor of a file that transformers calls ``name``, of a decoder with so many layers; raises
    ``ModelError`` if there is none of that shape and one of ``types``."""
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == header.architecture)
    known = str(name_map(architecture, n_layers).get_name(name, (".weight", ".bias")) or name)
    tensor = header.tensors.get(known)
    found = None if tensor is None else tensor.shape[::-1].tolist()
    if tensor is None or found != list(shape) or tensor.tensor_type.name not in types:
        has = "none" if tensor is None else f"{found} of the type {tensor.tensor_type.name}"
        raise ModelError(f"{header.path} should hold {known} of the shape {list(shape)} and a type of "
                         f"{', '.join(types)}; it has {has}: choose another file, or copy a damaged one again")
    return tensor


@cache
def name_map(architecture: gguf.MODEL_ARCH, n_layers: int) -> Any:
    """Return GGUF's map of names, which takes tenths of a second to build and is asked for every tensor."""
    return gguf.get_tensor_name_map(architecture, n_layers)
