"""Tensors of a finished run as exporters need them: codes, biases and LoRA pairs of its linears, and all others."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qra_bo.export.foreign import read_adapter
from qra_bo.export.load import dense_base, packed_states
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.manifest import ModuleRecord
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.finetune.quantization.planes import codes_at, words_of
from qra_bo.memory.serving import TARGET_FORMATS
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoraPair:
    """Adapter of one linear: ``scale * up @ down`` is added to its weight.

    Args:
        down: LoRA A, ``rank x in``, fp32.
        up: LoRA B, ``out x rank``, fp32.
        scale: alpha / rank.
    """

    down: Tensor
    up: Tensor
    scale: float


def padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return LoRA A (``r x in``) and B (``out x r``) padded with zeros to ``rank``: their product stays as it is."""
    added = rank - len(down)
    return (torch.nn.functional.pad(down, (0, 0, 0, added)).contiguous(),
            torch.nn.functional.pad(up, (0, added)).contiguous())


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """One quantised linear, or a packed embedding or head, on the host.

    Args:
        name: Path of the module in the base model.
        format: Storage format.
        shape: (out, in).
        state: Packed tensors, as the format's backend names them.
        bias: ``out``, or ``None``.
        lora: Its adapter; ``None`` at rank 0.
    """

    name: str
    format: StorageFormat
    shape: tuple[int, int]
    state: State
    bias: Tensor | None
    lora: LoraPair | None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the unpacked weight, ``out x in``, as a product in ``dtype`` sees it."""
        return backend_of(self.format).build(self.state, self.format, self.shape, None, dtype).unpack()

    def merged(self, dtype: torch.dtype) -> Tensor:
        """Return the unpacked weight with the adapter added in fp32, ``out x in``, rounded to ``dtype`` once."""
        weight, lora = self.dense(torch.float32), self.lora
        return (weight if lora is None else weight + lora.scale * (lora.up @ lora.down)).to(dtype)

    def affine(self, group: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (``out x in``, uint8), scales and zeros (``out x groups`` each, fp32) of a weight ``(code -
        zero) * scale`` in a format of the backend ``integer`` or ``hqq``. A group is a run of ``group`` columns of one
        row: a divisor of the format's and of the columns; ``None`` for the format's own."""
        state, fmt, (rows, columns) = self.state, self.format, self.shape
        group = fmt.block if group is None else group
        codes = codes_at(words_of(state), fmt, torch.arange(state["scale"].numel()))
        zero = state.get("zero", torch.full_like(state["scale"], float(1 << fmt.bits - 1)))
        scale, zero = (part.float().reshape(-1).repeat_interleave(fmt.block // group).view(rows, columns // group)
                       for part in (state["scale"], zero))
        return codes.view(rows, columns), scale, zero


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Everything that a file for another program is made from.

    Args:
        linears: By name, in module order.
        others: Every other tensor by the base model's name, in the run's compute type; tied weights once. Embedding and
            head are those that the run trained on: unpacked where it packed them.
        config: Configuration of the base model, by transformers; its ``dtype`` is the run's compute type.
        generation_config: Its defaults for generation, or ``None``.
        tokenizer: Of the base model; ``save_pretrained`` writes its chat template too.
        tables: Packed embedding and, where it has weights of its own, head, as linears by module; none in 16 bits.
    """

    linears: Mapping[str, LinearWeights]
    others: Mapping[str, Tensor]
    config: Any
    generation_config: Any
    tokenizer: Any
    tables: Mapping[str, LinearWeights] = field(default_factory=dict)


def refuse_formats(target: str, modules: Mapping[str, ModuleRecord], group: int | None = None) -> None:
    """Refuse a run that holds formats without a form in an export target, or rows that are no whole groups of ``group``
    weights; ``None``: of the format's own.

    Raises:
        ConfigError: With all of them, and what to search with instead.
    """
    holds, instead = TARGET_FORMATS[target]
    lost = sorted({f"{record.format.name} ({record.shape[1]} columns)" for record in modules.values()
                   if not holds(record.format)
                   or (record.format.bits < 16 and record.shape[1] % (group or record.format.block or 1))})
    if lost:
        raise ConfigError(f"export.targets=[{target}] has no form for {', '.join(lost)} of this run. Run it again with "
                          f"{instead}, whose formats it holds, or export merged, a copy in 16 bits")


def weights_of(run: FinishedRun) -> RunWeights:
    """Read base, packed tensors and adapter of a run, each checked against the manifest.

    Raises:
        OutputError: If a file of the run is missing, damaged or of another run.
        ModelError: If the base model is not at hand, is not the one that the run quantised, or needs code to run.
    """
    manifest, dtype = run.manifest, getattr(torch, run.manifest.compute_dtype)
    model, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    linears: dict[str, LinearWeights] = {}
    tables: dict[str, LinearWeights] = {}
    for module, weights in weights_in(model, run):
        if weights.name in manifest.modules:
            linears[weights.name] = weights
        else:
            tables[weights.name] = weights
            if not manifest.stored:
                module.weight.data = weights.dense(dtype)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    others = _others(model, linears)
    if manifest.stored:  # their tables have no dense module
        others = {f"{name}.weight": table.dense(dtype) for name, table in tables.items()} | {
            name: tensor for name, tensor in others.items() if not name.endswith(".table.codes")}
    return RunWeights(linears, others, model.config, getattr(model, "generation_config", None), tokenizer, tables)


def weights_in(model: Any, run: FinishedRun) -> Iterator[tuple[Any, LinearWeights]]:
    """Cast the parameters of a run's dense base as the run did, and iterate over the modules that it packed (linears,
    then embedding and head), each with its tensors. Errors: those of ``weights_of``."""
    adapter = read_adapter(run.adapter, run.manifest)
    for name, state in packed_states(model, run.manifest, run.folder):
        record, module, lora = run.manifest.packed_weights[name], model.get_submodule(name), None
        if record.rank:
            down, up = (adapter[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
            lora = LoraPair(down, up, record.alpha / record.rank)
        bias = getattr(module, "bias", None)
        yield module, LinearWeights(name, record.format, record.shape, {k: t.cpu() for k, t in state.items()},
                                    None if bias is None else bias.detach(), lora)


def save_model(folder: Path, weights: RunWeights, config: Mapping[str, Any], tensors: Mapping[str, Tensor],
               kind: str, card: str) -> list[Path]:
    """Write a folder that a program loads as a model; return all files in it.

    Args:
        folder: Made where it is missing.
        weights: Their tokenizer, with its chat template, and defaults for generation are written as they are.
        config: Contents of ``config.json``.
        tensors: By the program's names; none shares storage with another.
        kind: ``format`` in the header of ``model.safetensors``.
        card: Text of ``README.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_tensors(folder / "model.safetensors", whole, {"format": kind})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights.tokenizer.save_pretrained(str(folder))
    save_generation(weights.generation_config, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def save_generation(settings: Any, folder: Path) -> None:
    """Write the defaults for generation of a base as they are, ``None`` for none: many releases of transformers load
    published ones that they refuse to save."""
    if settings is not None:
        settings.to_json_file(str(folder / "generation_config.json"), use_diff=True, keys_to_pop=["compile_config"])


def _others(model: Any, linears: Mapping[str, LinearWeights]) -> dict[str, Tensor]:
    """Return the tensors of ``model`` outside its quantised linears; of tied ones the first name is kept."""
    inside = tuple(f"{name}." for name in linears)
    first: dict[int, str] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(inside) and first.setdefault(tensor.data_ptr(), name) == name:
            found[name] = tensor
    return found
