"""``qra_bo.load``: a finished run's base model, quantised as the search left it, with its adapter."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from qra_bo.export.foreign import check_adapter, check_random_base, read_weights
from qra_bo.export.training import make_trainable
from qra_bo.finetune.adapters.lora import fuse
from qra_bo.finetune.manifest import (
    ADAPTER,
    Manifest,
    ModuleRecord,
    package_versions,
    read_manifest,
    tensors_digest,
    unflatten,
    unquantised_digest,
)
from qra_bo.finetune.models.hub import fetch
from qra_bo.finetune.models.load import cast_parameters, load_base, use_fast_attention
from qra_bo.finetune.quantization.bank import allow_mixed_bits
from qra_bo.finetune.quantization.base import State, backend_of, pack_for
from qra_bo.finetune.quantization.embeddings import dense_tables, embedding_modules, install_embeddings
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.utils.device import resolve_device
from qra_bo.utils.errors import ConfigError, DeviceError, ModelError, OutputError, is_out_of_memory
from qra_bo.utils.files import COPY_AGAIN, check_readable, check_run_folder


def load(run: str | Path, device: str = "cpu", *, adapter: bool = True, trainable: bool = False,
         trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Rebuild the model of a run: base, quantisation by ``quant_manifest.json``, adapter; also its tokenizer.

    Args:
        run: The run's folder.
        device: Where the model goes, e.g. ``"cpu"`` or ``"cuda"``.
        adapter: Whether to put the adapter on; without it the quantised base is returned.
        trainable: Whether to go on training the adapter: its weights are in fp32 and take gradients, and the model is
            in training mode. transformers' ``Trainer``, TRL and plain loops take it; see ``optimizer_groups`` too.
        trust_remote_code: Whether code that comes with the base model may run, where the run needs it.

    Raises:
        ConfigError: If a model without an adapter is to be trainable.
        OutputError: If the folder lacks a manifest or an adapter in safetensors, they do not fit together, or it holds
            files that no run writes.
        ModelError: If the base model is not at hand, is not the one that the run quantised, or needs code to run.
        DeviceError: If the device is not there.
    """
    folder = Path(run)
    if trainable and not adapter:
        raise ConfigError("load(trainable=True) trains the run's adapter; got adapter=False, a quantised base, which "
                          "takes no gradients: attach an adapter of your own to it with peft.get_peft_model")
    try:
        target = torch.device(resolve_device(device))
    except RuntimeError as error:
        raise DeviceError(f"device must be 'cpu', 'cuda' or e.g. 'cuda:1'; got {device!r}") from error
    check_run_folder(folder)
    manifest = read_manifest(folder)
    if adapter:
        check_adapter(folder / ADAPTER, manifest)
    model, tokenizer = dense_base(manifest, folder, trust_remote_code)
    quantise(model, manifest, folder, target)
    use_fast_attention(model, target, getattr(torch, manifest.compute_dtype))
    if adapter:
        model = _adapted(model, folder / ADAPTER, manifest, target)
        fuse(model)  # the forward that it was trained with, to the last bit
    return make_trainable(model) if trainable else model.eval(), tokenizer


def dense_base(manifest: Manifest, folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load the base model of the run in ``folder`` before quantisation, and its tokenizer.

    Raises:
        OutputError: If the manifest names none, or describes it badly.
        ModelError: If it is not at hand, or no longer where the run found it, or needs code to run and the caller does
            not allow that.
    """
    node = manifest.model
    if not isinstance(node.get("source"), str) or not isinstance(node.get("name"), str):
        raise OutputError(f"the manifest in {folder} names no base model (its 'model' needs 'name' and 'source'); "
                          f"{COPY_AGAIN}")
    runs_code = bool(node.get("trust_remote_code"))
    if runs_code and not trust_remote_code:
        raise ModelError(f"the run in {folder} asks to run code that comes with {node.get('path')!r} "
                         "(trust_remote_code); a run's folder is data and can't allow that itself. If you trust that "
                         "code, say so: qra_bo.load(run, trust_remote_code=True), or model.trust_remote_code=true in "
                         "a command")
    if node["source"] == "random":
        check_random_base(manifest)
    where = Path(str(node.get("path")))
    if node["source"] == "path" and where.is_absolute() and not where.exists():
        raise ModelError(f"the run in {folder} trained on the model in {where}, which is not there: copy that model "
                         f"to {where}, or make it a link to the folder that holds the same model now")
    try:
        fetch({**node, "trust_remote_code": runs_code})
        return load_base({**node, "trust_remote_code": runs_code})
    except (KeyError, TypeError) as error:
        raise OutputError(f"the manifest in {folder} describes its base model badly: {error!r} is missing or of the "
                          f"wrong type; {COPY_AGAIN}") from error


def quantise(model: Any, manifest: Manifest, folder: Path, device: torch.device) -> None:
    """Replace the linears of ``model``, and its embedding and head where the run packed them, by packed ones, each
    checked against its checksum.

    Raises:
        ModelError: If the base model is not the one that the run quantised, or comes out differently here.
        OutputError: If the file of packed weights is missing or damaged.
    """
    dtype = getattr(torch, manifest.compute_dtype)
    for name, linear, state in packed_linears(model, manifest, folder):
        record = manifest.modules[name]
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        layer = backend_of(record.format).build({k: t.to(device) for k, t in state.items()}, record.format,
                                                record.shape, bias, dtype)
        model.set_submodule(name, layer)
    if manifest.embeddings is not None:
        states = packed_embeddings(model, manifest, folder)
        install_embeddings(model, {name: {k: t.to(device) for k, t in state.items()} for name, state in states.items()},
                           manifest.embeddings.format, dtype)
    allow_mixed_bits(model)
    model.to(device)


def packed_linears(model: Any, manifest: Manifest, folder: Path) -> Iterator[tuple[str, nn.Linear, State]]:
    """Cast the parameters of the dense ``model`` as the run did; then iterate over its quantised linears by name, each
    with its packed tensors, from the run's file or packed again, after a check of their checksum.

    Raises:
        ModelError: If the base model is not the one that the run quantised, or comes out differently here.
        OutputError: If the file of packed weights is missing or damaged.
    """
    dtype = getattr(torch, manifest.compute_dtype)
    linears = {name: _linear(model, name, record) for name, record in manifest.modules.items()}
    cast_parameters(model, dtype, linears)
    tables = () if manifest.embeddings is None else embedding_modules(model)
    if unquantised_digest(model, (*linears, *tables)) != manifest.unquantised_sha256:
        raise ModelError("the base model is not the one that this run fine-tuned: its embeddings, norms or biases "
                         f"differ; expected {dict(manifest.model)}")
    stored = stored_states(manifest, folder)
    where = torch.device(manifest.packed_on)
    for name, record in manifest.modules.items():
        if stored is not None:
            yield name, linears[name], stored[name]
            continue
        backend_of(record.format).check(record.format, *record.shape)
        state = pack_for(linears[name].weight.detach(), record.format, dtype, where)
        if tensors_digest(state) != record.sha256:
            raise _mismatch(name, manifest)
        yield name, linears[name], state


def packed_embeddings(model: Any, manifest: Manifest, folder: Path) -> dict[str, State]:
    """Return the packed tensors of embedding and head by module, from the run's file or packed again; none in 16 bits.

    The parameters of the dense ``model`` have been cast as the run did. Errors: those of ``packed_linears``.
    """
    record, dtype = manifest.embeddings, getattr(torch, manifest.compute_dtype)
    if record is None:
        return {}
    dense = dense_tables(model)
    shapes = {name: tuple(module.weight.shape) for name, module in dense.items()}
    if shapes != dict.fromkeys(record.tables, record.shape):
        raise ModelError(f"the base model's embedding and head are {shapes}; this run packed "
                         f"{dict.fromkeys(record.tables, record.shape)}")
    if manifest.packed is not None:
        with safe_open(folder / manifest.packed, "pt") as file:  # the linears' tensors have been read before
            states = unflatten({key: file.get_tensor(key) for key in file.keys()  # noqa: SIM118 (no mapping)
                                if key.partition(":")[0] in dense})
    else:
        states = {name: pack_for(module.weight.detach(), record.format, dtype, torch.device(manifest.packed_on))
                  for name, module in dense.items()}
    for name, sha256 in record.tables.items():
        if tensors_digest(states.get(name, {})) != sha256:
            raise _mismatch(name, manifest)
    return states


def dequantise_embeddings(model: Any, manifest: Manifest, folder: Path) -> None:
    """Give a dense model, cast as the run did, the embedding and head that the run trained on. Errors: those of
    ``packed_linears``."""
    for name, state in packed_embeddings(model, manifest, folder).items():
        weight, record = model.get_submodule(name).weight, manifest.embeddings
        assert record is not None
        table = PackedTable(state, record.format, record.shape, weight.dtype)
        weight.data = table.unpacked().to(weight.device)  # which was packed where the run packed it


def _linear(model: nn.Module, name: str, record: ModuleRecord) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"the base model has no layer {name!r}, which this run quantised") from error
    if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != record.shape:
        raise ModelError(f"the base model's {name} is {linear}; this run quantised a linear layer of "
                         f"{record.shape[0]} x {record.shape[1]}")
    return linear


def stored_states(manifest: Manifest, folder: Path) -> dict[str, State] | None:
    """Read the packed tensors that a run kept and check their checksums; ``None`` where it kept none.

    Raises:
        OutputError: If their file is missing or damaged, or of another run.
        DeviceError: If the run kept none and packed its weights where they can't be packed again here.
    """
    if manifest.packed is None:
        if manifest.packed_on == "cuda" and not torch.cuda.is_available():
            raise DeviceError("this run packed its weights on CUDA, which rounds some of them differently from a CPU, "
                              "and kept no packed.safetensors: load it on a machine with CUDA, or export it there with "
                              "export.targets=[packed]")
        return None
    path = folder / manifest.packed
    if not path.is_file():
        raise OutputError(f"{path}, which the manifest names, is missing")
    check_readable(path)
    try:
        states = unflatten(load_file(path))
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path} is damaged or no safetensors file ({error}); {COPY_AGAIN}") from error
    check_states(manifest, states, folder)
    return states


def check_states(manifest: Manifest, states: Mapping[str, State], folder: Path) -> None:
    """Compare packed tensors with the checksums of the manifest.

    Raises:
        OutputError: With the first linear or table that differs or is missing.
    """
    tables = {} if manifest.embeddings is None else manifest.embeddings.tables
    for name, sha256 in {**{name: record.sha256 for name, record in manifest.modules.items()}, **tables}.items():
        if tensors_digest(states.get(name, {})) != sha256:
            raise OutputError(f"the packed weights of {name} do not have the checksum of the manifest in {folder}: the "
                              "file of packed weights is damaged or belongs to another run")


def _mismatch(name: str, manifest: Manifest) -> ModelError:
    here = package_versions()
    other = [f"{k} {v} then, {here.get(k, 'none')} now" for k, v in manifest.versions.items() if here.get(k) != v]
    reason = ("other releases are installed: " + ", ".join(other)) if other else \
        "the same releases are installed, so the base model's weights differ"
    return ModelError(f"{name} quantised here differs from what this run trained on ({reason}); use what the run used, "
                      "or export the run with its packed weights")


def _adapted(model: Any, path: Path, manifest: Manifest, device: torch.device) -> Any:
    """Put the adapter in ``path`` on, with its weights in their own type, and on ``device``, where the model is."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT's own initialisation is drawn and overwritten; a key that fits nothing must not pass with a warning.
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        # PEFT 0.21 asks transformers by a name that transformers renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        try:
            # Without a device PEFT reads it onto the first GPU, wherever the model is.
            wrapped = PeftModel.from_pretrained(model, str(path), autocast_adapter_dtype=False,
                                                torch_device=str(device))
        except (UserWarning, RuntimeError, KeyError, ValueError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            raise OutputError(f"the adapter in {path} does not fit the model of this run: {error}") from error
    kinds = {t.dtype for t in read_weights(path, manifest).values()}
    if len(kinds) != 1:
        raise OutputError(f"the weights in {path} are of several types: {sorted(map(str, kinds))}")
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(next(iter(kinds)))  # PEFT keeps fp32 where a base is not of a float type
            parameter.requires_grad_(False)
    return wrapped
