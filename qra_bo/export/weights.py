"""Tensors of a finished run as exporters need them: codes, biases and LoRA pairs of its linears, and all others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.export.foreign import check_adapter, read_weights
from qra_bo.export.load import dense_base, dequantise_embeddings, packed_embeddings, packed_linears
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import Manifest, read_manifest
from qra_bo.finetune.models.load import source_folder
from qra_bo.finetune.quantization.base import State, backend_of, packed
from qra_bo.space import StorageFormat

GENERATION = "generation_config.json"


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

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def update(self) -> Tensor:
        """``out x in``, fp32."""
        return self.scale * (self.up @ self.down)


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """One quantised linear, on the host.

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
        return packed(backend_of(self.format).build(self.state, self.format, self.shape, None, dtype)).unpack()

    def merged(self, dtype: torch.dtype) -> Tensor:
        """Return the unpacked weight with the adapter added in fp32, ``out x in``, rounded to ``dtype`` once."""
        weight = self.dense(torch.float32)
        return (weight if self.lora is None else weight + self.lora.update).to(dtype)


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Everything that a file for another program is made from.

    Args:
        manifest: Of the run.
        linears: By name, in module order.
        others: Every other tensor by the base model's name, in the run's compute type; tied weights once. Embedding and
            head are those that the run trained on: unpacked where it packed them.
        config: Configuration of the base model, by transformers; its ``dtype`` is the run's compute type.
        generation_config: Its defaults for generation, or ``None``.
        tokenizer: Of the base model; ``save_pretrained`` writes its chat template too.
        source: Folder that the base was read from; ``None`` where it is random.
        tables: Packed embedding and, where it has weights of its own, head, as linears by module; none in 16 bits.
    """

    manifest: Manifest
    linears: Mapping[str, LinearWeights]
    others: Mapping[str, Tensor]
    config: Any
    generation_config: Any
    tokenizer: Any
    source: Path | None
    tables: Mapping[str, LinearWeights] = field(default_factory=dict)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the run's matrix products."""
        dtype: torch.dtype = getattr(torch, self.manifest.compute_dtype)
        return dtype


def weights_of(run: FinishedRun) -> RunWeights:
    """Read base, packed tensors and adapter of a run, each checked against the manifest.

    Raises:
        OutputError: If a file of the run is missing, damaged or of another run.
        ModelError: If the base model is not at hand, is not the one that the run quantised, or needs code to run.
        DeviceError: If the run packed its weights on CUDA, kept none, and there is no CUDA here.
    """
    manifest = read_manifest(run.folder)
    model, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    linears = {weights.name: weights for _, weights in linears_of(model, manifest, run)}
    tables = _tables(packed_embeddings(model, manifest, run.folder), manifest)
    dequantise_embeddings(model, manifest, run.folder)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = getattr(torch, manifest.compute_dtype)
    return RunWeights(manifest, linears, _others(model, linears), model.config,
                      getattr(model, "generation_config", None), tokenizer, source_folder(manifest.model), tables)


def linears_of(model: Any, manifest: Manifest, run: FinishedRun) -> Iterator[tuple[nn.Linear, LinearWeights]]:
    """Cast the parameters of a run's dense base as the run did, and iterate over its quantised linears: the dense one
    and its tensors. Errors: those of ``weights_of``."""
    check_adapter(run.adapter, manifest)
    adapter = read_weights(run.adapter, manifest)
    for name, linear, state in packed_linears(model, manifest, run.folder):
        record, lora = manifest.modules[name], None
        if record.rank:
            down, up = (adapter[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
            lora = LoraPair(down, up, record.alpha / record.rank)
        yield linear, LinearWeights(name, record.format, record.shape, {k: t.cpu() for k, t in state.items()},
                                    None if linear.bias is None else linear.bias.detach(), lora)


def save_generation(settings: Any, folder: Path) -> None:
    """Write the defaults for generation of a base as they are, ``None`` for none: many releases of transformers load
    published ones that they refuse to save."""
    if settings is not None:
        settings.to_json_file(str(folder / GENERATION), use_diff=True, keys_to_pop=["compile_config"])


def _tables(states: Mapping[str, State], manifest: Manifest) -> dict[str, LinearWeights]:
    record = manifest.embeddings
    return {} if record is None else {
        name: LinearWeights(name, record.format, record.shape, {key: t.cpu() for key, t in state.items()}, None, None)
        for name, state in states.items()}


def _others(model: Any, linears: Mapping[str, LinearWeights]) -> dict[str, Tensor]:
    """Return the tensors of ``model`` outside its quantised linears; of tied ones the first name is kept."""
    inside = tuple(f"{name}." for name in linears)
    first: dict[int, str] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(inside) and first.setdefault(tensor.data_ptr(), name) == name:
            found[name] = tensor
    return found
