"""``quant_manifest.json``: the description by which a run's quantised base model is rebuilt and verified.

``save_pretrained`` of a model that mixes 4-bit and 8-bit layers does not load again, so a run keeps this file beside
its adapter, the packed weights, which another release or device may round differently, and a few logits. Formats of 16
bits are a cast of the base and are made again. Checksums and logits detect a base that has changed.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qra_bo.finetune.checked_tensors import add_tensors, load_checked, save_checked, save_tensors
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.models.files import bases_of
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import State
from qra_bo.finetune.quantization.embeddings import embedding_modules, packed_tables
from qra_bo.memory.embeddings import embedding_format
from qra_bo.memory.file_formats import BACKEND, STORED_FORMATS
from qra_bo.memory.formats import format_from_json, parse_format
from qra_bo.memory.stored import own_format
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import OutputError, SpaceError
from qra_bo.utils.files import COPY_AGAIN, check_plain, check_readable, read_object, strict_json, write_json
from qra_bo.utils.redact import redact_all
from qra_bo.utils.version import versions

SCHEMA_VERSION = 1
MANIFEST = "quant_manifest.json"
PACKED = "packed.safetensors"
ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
DTYPES, DEVICES, FILE = ("float32", "bfloat16", "float16"), ("cpu", "cuda"), "file"
PACKAGES = ("torch", "bitsandbytes", "hqq", "numba", "peft", "transformers")
PROBE = "probe.safetensors"
LONGEST_NAME = 500
"""Characters of the longest name of a module: work grows with their square."""
N_TOKENS, N_LOGITS = 64, 4096


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One linear layer: its format, shape, adapter and the checksum of its packed tensors."""

    format: StorageFormat
    shape: tuple[int, int]
    rank: int
    alpha: float
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.format), "shape": list(self.shape), "rank": self.rank, "alpha": self.alpha,
                "sha256": self.sha256}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModuleRecord":
        fmt = format_from_json({f.name: data[f.name] for f in fields(StorageFormat)})
        rows, columns = data["shape"]
        rank, alpha, sha256 = data["rank"], data["alpha"], data["sha256"]
        if any(type(n) is not int or n < 0 for n in (rows, columns, rank)) or type(alpha) not in (int, float) \
                or not isinstance(sha256, str):
            raise ValueError("'shape' and 'rank' (integers), 'alpha' (a number) or 'sha256' (text)")
        return cls(fmt, (rows, columns), rank, alpha, sha256)


def _check_tables(tables: Mapping[str, ModuleRecord]) -> None:
    """Raise ``ValueError`` unless embedding and head are of one format of embeddings, or as in a file, and of one
    shape, without adapters."""
    kinds = {(record.format, record.shape, record.rank) for record in tables.values()}
    stored = all(fmt.name in STORED_FORMATS for fmt, _, _ in kinds)
    if len({kind[stored:] for kind in kinds}) > 1 or len(tables) > 2 or any(
            rank or min(shape) < 1 or not (stored or embedding_format(fmt.bits, shape[1]) == fmt)
            for fmt, shape, rank in kinds):
        raise ValueError("'tables': at most two of one shape, a format of embeddings and rank 0")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of ``quant_manifest.json``.

    Args:
        model: Node of ``conf/model`` that ``load_base`` takes: source, path, revision, GGUF file ...; ``text_part``
            states whether the base is the text decoder of a checkpoint with other parts; ``base`` are its ``facts_of``.
        compute_dtype: Name of the compute type, e.g. ``"bfloat16"``.
        packed_on: Device type that packed the weights; ``"file"``: they are those of the base's file.
        modules: Record of every linear of the decoder by name, in module order.
        unquantised_sha256: Checksum of all other parameters, biases of the linears among them.
        adapter_sha256: Checksum of the adapter's tensors and of its configuration.
        packed: File of packed tensors beside the manifest; ``None`` where all have 16 bits or are of a file.
        versions: Releases of the packages that determine the numbers.
        tables: Record of the packed embedding and, where it shares no weights with it, head by name; none in 16 bits.
    """

    model: Mapping[str, Any]
    compute_dtype: str
    packed_on: str
    modules: Mapping[str, ModuleRecord]
    unquantised_sha256: str
    adapter_sha256: str
    packed: str | None
    versions: Mapping[str, str]
    tables: Mapping[str, ModuleRecord] = field(default_factory=dict)

    @property
    def stored(self) -> bool:
        """Whether the base has the codes of its file, as they are: the file alone holds them."""
        return self.packed_on == FILE

    @property
    def in_folder(self) -> bool:
        """Whether that file is one folder of transformers, which other programs load too."""
        return self.untouched and self.model.get("gguf_file") is None

    @property
    def untouched(self) -> bool:
        """Whether the base is one such file: a mix of two is in none."""
        return self.stored and len(bases_of(self.model)) < 2

    @property
    def packed_weights(self) -> dict[str, ModuleRecord]:
        """Record of every linear, then of embedding and head where they are packed, by module."""
        return {**self.modules, **self.tables}

    @property
    def alpha_over_rank(self) -> float:
        """LoRA's scale alpha / r, the same in every module. Raises ``OutputError`` where it differs."""
        scales = [record.alpha / record.rank for record in self.modules.values() if record.rank]
        if not scales or max(scales) - min(scales) > 1e-9 * max(scales):
            raise OutputError(f"alpha / r must be one positive number for all modules of a run, got "
                              f"{sorted(set(scales))[:4]} in its manifest; {COPY_AGAIN}")
        return scales[0]

    def packed_states(self, folder: Path) -> dict[str, State]:
        """Return the packed tensors that the run in ``folder`` kept, by module; raises ``OutputError`` if their file is
        missing or damaged."""
        if self.packed is None:
            return {}
        path = folder / self.packed
        if not path.is_file():
            raise OutputError(f"{path}, which the manifest names, is missing")
        check_readable(path)
        try:
            return unflatten(load_file(path))
        except (SafetensorError, OSError) as error:
            raise OutputError(f"{path} is damaged or no safetensors file ({error}); {COPY_AGAIN}") from error

    def to_json(self) -> dict[str, Any]:
        records = {kind: {name: record.to_json() for name, record in getattr(self, kind).items()}
                   for kind in ("modules", "tables")}
        return sealed({"schema_version": SCHEMA_VERSION, **asdict(self), **records})


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest with the checksum of all of them under ``sha256``."""
    stated = {key: value for key, value in data.items() if key != "sha256"}
    return {**stated, "sha256": hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: name, type, shape and bytes of each, in the order of their names."""
    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()


def adapter_digest(folder: Path) -> str:
    """Return the checksum of an adapter in PEFT's files; raises ``OSError``, ``SafetensorError`` or ``ValueError`` if
    they can't be read."""
    config = json.dumps(strict_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")), sort_keys=True)
    return hashlib.sha256(f"{tensors_digest(load_file(folder / ADAPTER_WEIGHTS))}\n{config}".encode()).hexdigest()


def unquantised_digest(model: nn.Module, packed: Iterable[str]) -> str:
    """Return the checksum of the parameters outside adapters that are not in the packed tensors of the modules named
    ``packed``, whose biases are among them."""
    inside = tuple(f"{name}." for name in packed)
    named = ((name.replace(".base_layer.", "."), p) for name, p in model.named_parameters() if "lora_" not in name)
    return tensors_digest({name: p for name, p in named if not name.startswith(inside) or name.endswith(".bias")})


def package_versions() -> dict[str, str]:
    """Return the releases of the packages that determine the numbers, and of Python."""
    return {**versions(PACKAGES), "python": platform.python_version()}


def write_manifest(folder: Path, bank: LayerBank, ranks: Mapping[str, int], alpha_over_rank: float,
                   model: Mapping[str, Any]) -> Manifest:
    """Describe the layers that ``bank`` has installed and the adapter in ``folder`` in ``folder/quant_manifest.json``.

    ``ranks`` are those of the linears (0 or missing: no adapter); ``model`` is the node of ``conf/model``. Packed
    weights are written beside it, but for those of 16 bits and those of a file.
    """
    current = bank.current
    stored = any(fmt.backend == BACKEND for fmt in bank.formats)
    states = {linear.name: bank.installed_state(linear.name) for linear in bank.spec.linears}
    records = {}
    for linear in bank.spec.linears:
        name, rank = linear.name, ranks.get(linear.name, 0)
        records[name] = ModuleRecord(own_format(parse_format(current[name]), linear),
                                     (linear.out_features, linear.in_features), rank, rank * alpha_over_rank,
                                     tensors_digest(states[name]))
    packed = packed_tables(bank.model)
    table_tensors = {name: {key: tensor.cpu() for key, tensor in table.packed_state().items()}
                     for name, table in packed.items()}
    tables = {name: ModuleRecord(table.fmt, table.shape, 0, 0.0, tensors_digest(table_tensors[name]))
              for name, table in packed.items()}
    kept = {} if stored else {n: s for n, s in states.items() if not records[n].format.is_base} | table_tensors
    apart = embedding_modules(bank.model) if tables and not stored else ()
    manifest = Manifest(redact_all(dict(model)), str(bank.compute_dtype).removeprefix("torch."),
                        FILE if stored else bank.device.type,
                        records, unquantised_digest(bank.model, (*records, *apart)),
                        adapter_digest(folder / ADAPTER), PACKED if kept else None, package_versions(), tables)
    if kept:
        save_tensors(folder / PACKED, flatten(kept))
    write_json(folder / MANIFEST, manifest.to_json())
    return manifest


def flatten(states: Mapping[str, State]) -> State:
    """Return packed tensors of many linears under ``linear:tensor`` names; the result shares no storage."""
    return {f"{linear}:{name}": tensor.clone() for linear, state in states.items() for name, tensor in state.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, State]:
    """Return the packed tensors of every linear from the result of ``flatten``."""
    states: dict[str, State] = {}
    for key, tensor in tensors.items():
        linear, _, name = key.partition(":")
        states.setdefault(linear, {})[name] = tensor
    return states


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a run's folder.

    Raises:
        OutputError: If there is none, it is malformed, of another schema, or its own checksum does not hold.
    """
    path = folder / MANIFEST
    check_plain(path)
    if not path.exists():
        raise OutputError(f"{folder} is not the folder of a finished run: it holds no {MANIFEST}")
    check_readable(path)
    data = read_object(path)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise OutputError(f"{path} has schema version {version}; this release reads {SCHEMA_VERSION}: "
                          f"use the release that wrote it, or {COPY_AGAIN}")
    try:
        modules, tables = ({name: ModuleRecord.from_json(record) for name, record in data[kind].items()}
                           for kind in ("modules", "tables"))
        _check_tables(tables)
        if any(len(name) > LONGEST_NAME for name in (*modules, *tables)):
            raise ValueError("a name of a module")
        manifest = Manifest(dict(data["model"].items()), data["compute_dtype"], data["packed_on"], modules,
                            data["unquantised_sha256"], data["adapter_sha256"], data["packed"],
                            dict(data["versions"].items()), tables)
        whole = data["sha256"]
        if manifest.compute_dtype not in DTYPES or manifest.packed_on not in (*DEVICES, FILE) \
                or manifest.packed not in (None, PACKED):
            raise ValueError(f"compute_dtype {manifest.compute_dtype!r}, packed_on {manifest.packed_on!r} or packed "
                             f"{manifest.packed!r}, which must be one of {DTYPES}, of {(*DEVICES, FILE)}, and "
                             f"{PACKED} or null")
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, SpaceError) as error:
        raise OutputError(f"{path} is malformed: {error!r} is missing or of the wrong type; {COPY_AGAIN}") from error
    if whole != sealed(data)["sha256"]:
        raise OutputError(f"{path} was changed after it was written: its fields do not have the checksum that it "
                          f"states; {COPY_AGAIN}")
    return manifest


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[..., :N_LOGITS].float().cpu()
    model.train(was_training)
    return logits


def save_probe(model: Any, blocks: TokenBlocks, path: Path, device: torch.device) -> None:
    """Write the first tokens of the first held-out sequence and their logits (``1 x n x v``, v at most 4096)."""
    ids = torch.from_numpy(blocks.input_ids[:1, :N_TOKENS]).to(device)
    save_checked(path, {"input_ids": ids.cpu(), "logits": _logits(model, ids).contiguous()}, {})


def read_probe(path: Path) -> tuple[Tensor, Tensor]:
    """Return the tokens and logits of ``save_probe``.

    Raises:
        OutputError: If the file can't be read or is damaged.
    """
    check_readable(path)
    try:
        tensors, _ = load_checked(path)
        return tensors["input_ids"], tensors["logits"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} can't be read or was changed ({error}); {COPY_AGAIN}") from error


def probe_difference(model: Any, path: Path, device: torch.device) -> float:
    """Return the largest absolute difference between the model's logits and those in ``path``."""
    ids, expected = read_probe(path)
    return float((_logits(model, ids.to(device)) - expected).abs().max())
