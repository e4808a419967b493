"""``qra_bo.load``: a finished run's base model, quantised as the search left it, with its adapter."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.config.resume import changed
from qra_bo.export.foreign import check_random_base, read_adapter
from qra_bo.export.run import problems_of, rate_of
from qra_bo.finetune.adapters.lora import adapter_parameters, attach
from qra_bo.finetune.data.chat_template import ChatTemplate
from qra_bo.finetune.manifest import (
    ADAPTER,
    DEVICES,
    Manifest,
    ModuleRecord,
    read_manifest,
    tensors_digest,
    unquantised_digest,
)
from qra_bo.finetune.models.files import bases_of, facts_of
from qra_bo.finetune.models.hub import fetch
from qra_bo.finetune.models.load import cast_parameters, load_base, use_fast_attention
from qra_bo.finetune.quantization.base import Packed, State, backend_of, pack_for
from qra_bo.finetune.quantization.embeddings import dense_tables, embedding_modules, install_embeddings, packed_tables
from qra_bo.finetune.quantization.stored_model import load_others, load_stored, stored_state
from qra_bo.utils.device import resolve_device
from qra_bo.utils.errors import ConfigError, DeviceError, ModelError, OutputError
from qra_bo.utils.files import COPY_AGAIN, check_run_folder, read_object


def load(run: str | Path, device: str | torch.device = "cpu", *, adapter: bool = True, trainable: bool = False,
         dense: bool = False, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Rebuild the model of a run: base, quantisation by ``quant_manifest.json``, adapter; also its tokenizer.

    Args:
        run: The run's folder.
        device: Where the model goes, e.g. ``"cpu"`` or ``"cuda"``.
        adapter: Whether to put the adapter on; without it the quantised base is returned.
        trainable: Whether to go on training the adapter: its weights are in fp32 and take gradients, and the model is
            in training mode. transformers' ``Trainer``, TRL and plain loops take it; see ``optimizer_groups`` too.
        dense: Whether to keep every weight unpacked too, in the run's compute type. Generation then takes the time and
            the memory of a 16-bit model, and the packed weights beside it: several times faster where there is no
            kernel for products with few tokens, as for trellis codes. The numbers stay, bit for bit.
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
        target = torch.device(resolve_device(str(device)))
        if target.type not in DEVICES:
            raise RuntimeError(target.type)
    except RuntimeError as error:
        raise DeviceError(f"device must be 'cpu', 'cuda' or e.g. 'cuda:1'; got {str(device)!r}") from error
    check_run_folder(folder)
    manifest = read_manifest(folder)
    tensors = read_adapter(folder / ADAPTER, manifest) if adapter else {}
    model, tokenizer = dense_base(manifest, folder, trust_remote_code)
    quantise(model, manifest, folder, target)
    if dense:
        keep_unpacked(model, whatever=True)
    use_fast_attention(model, target, getattr(torch, manifest.compute_dtype))
    if adapter:
        model = _adapted(model, tensors, manifest, target)
    for name, parameter in model.named_parameters() if trainable else ():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
    return model.train(trainable), tokenizer


def optimizer_groups(model: Any, run: str | Path) -> list[dict[str, Any]]:
    """Return the parameter groups of an AdamW with the run's own learning rate for each rank.

    >>> torch.optim.AdamW(qra_bo.optimizer_groups(model, run))                                   # doctest: +SKIP

    Args:
        model: What ``load(run, trainable=True)`` returned.
        run: The run's folder.

    Returns:
        One group a rank: ``params``, ``lr``, ``betas``, ``eps`` and ``weight_decay``.

    Raises:
        OutputError: If ``best.json`` of the run can't be read, or does not state its training.
    """
    path = Path(run) / "best.json"
    best = read_object(path)
    if problems := problems_of(best):
        raise OutputError(f"{path} does not state its training: {'; '.join(problems)}; {COPY_AGAIN}")
    by_rank: dict[int, list[torch.nn.Parameter]] = {}
    for pair in adapter_parameters(model.get_base_model()).values():
        by_rank.setdefault(len(pair["A"]), []).extend(pair.values())
    training = best["training"]
    shared = {"betas": tuple(training["betas"]), "eps": training["eps"], "weight_decay": training["weight_decay"]}
    return [{"params": by_rank[rank], "lr": rate_of(best, rank), **shared} for rank in sorted(by_rank)]


def keep_unpacked(model: Any, whatever: bool = False) -> None:
    """Keep every weight unpacked beside its packed form: all if ``whatever``, else in half of a card's free memory."""
    for module in model.modules():
        if not isinstance(module, Packed):
            continue
        weight = module.unpack()
        if not whatever and weight.is_cuda and 2 * weight.nbytes > torch.cuda.mem_get_info(weight.device)[0]:
            return
        module.dense = weight


def dense_base(manifest: Manifest, folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load the base model of the run in ``folder`` before quantisation, or as its file stores it, and its tokenizer.

    Raises:
        OutputError: If the manifest names none, or describes it badly.
        ModelError: If it is not at hand, not where the run found it, or needs code that the caller does not allow.
    """
    node = manifest.model
    if not isinstance(node.get("source"), str) or not isinstance(node.get("name"), str):
        raise OutputError(f"the manifest in {folder} names no base model (its 'model' needs 'name' and 'source'); "
                          f"{COPY_AGAIN}")
    runs_code = bool(node.get("trust_remote_code"))
    if runs_code and not trust_remote_code:
        raise ModelError(f"the run in {folder} asks to run code that comes with {node.get('path')!r} "
                         "(trust_remote_code); a run's folder is data and can't allow that itself. If you trust it, "
                         "say so: qra_bo.load(run, trust_remote_code=True), or model.trust_remote_code=true")
    if node["source"] == "random":
        check_random_base(manifest)
    for where in (Path(str(base.get("path"))) for base in bases_of(node)):
        if node["source"] == "path" and where.is_absolute() and not where.exists():
            raise ModelError(f"the run in {folder} trained on the model in {where}, which is not there: copy that "
                             f"model to {where}, or make it a link to the folder that holds the same model now")
    try:
        named = {**node, "trust_remote_code": runs_code}
        if not manifest.stored:
            fetch(named)
        loaded = load_stored(named, getattr(torch, manifest.compute_dtype)) if manifest.stored else load_base(named)
    except (KeyError, TypeError) as error:
        raise OutputError(f"the manifest in {folder} describes its base model badly: {error!r} is missing or of the "
                          f"wrong type; {COPY_AGAIN}") from error
    if found := changed(node.get("base") or {}, facts_of(*loaded)):
        raise ModelError(f"the base model is not as this run found it: {'; '.join(found[:5])}. Restore its "
                         "configuration and its tokenizer")
    _end_answers(*loaded)
    return loaded


def _end_answers(model: Any, tokenizer: Any) -> None:
    """Let generation end at the chat template's mark too: a base model's defaults may name another end token."""
    if (settings := getattr(model, "generation_config", None)) is not None:
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        if new := [token for token in ChatTemplate(tokenizer).ends if token not in ends]:
            settings.eos_token_id = [*(token for token in ends if token is not None), *new]


def quantise(model: Any, manifest: Manifest, folder: Path, device: torch.device) -> None:
    """Replace the linears of ``model``, and its embedding and head where the run packed them, by packed ones. Errors:
    those of ``packed_states``."""
    dtype = getattr(torch, manifest.compute_dtype)
    tables: dict[str, State] = {}
    for name, state in packed_states(model, manifest, folder):
        record, state = manifest.packed_weights[name], {key: tensor.to(device) for key, tensor in state.items()}
        if name not in manifest.modules:
            tables[name] = state
            continue
        bias = model.get_submodule(name).bias
        bias = None if bias is None else bias.detach().to(device)
        model.set_submodule(name, backend_of(record.format).build(state, record.format, record.shape, bias, dtype))
    if tables and not manifest.stored:
        install_embeddings(model, tables, next(iter(manifest.tables.values())).format, dtype)
    model.to(device)


def packed_states(model: Any, manifest: Manifest, folder: Path) -> Iterator[tuple[str, State]]:
    """Cast the parameters of the dense ``model`` as the run did; then iterate over the packed tensors of its quantised
    linears, and after them of its embedding and head where the run packed them, by name. They come from the run's file
    or, in 16 bits, from the base; each is checked against its checksum.

    Raises:
        ModelError: If the base model is not the one that the run quantised.
        OutputError: If the file of packed weights is missing or damaged.
    """
    dtype, records = getattr(torch, manifest.compute_dtype), manifest.packed_weights
    tables = embedding_modules(model) if manifest.tables and not manifest.stored else ()
    found = packed_tables(model) if manifest.stored else dense_tables(model) if tables else {}
    if found.keys() != manifest.tables.keys():
        raise ModelError(f"the base model has the tables {', '.join(found)}, which are not those that this run packed")
    dense = {} if manifest.stored else {name: _dense(model, name, record) for name, record in records.items()}
    cast_parameters(model, dtype, manifest.modules)
    if unquantised_digest(model, (*manifest.modules, *tables)) != manifest.unquantised_sha256:
        raise ModelError("the base model is not the one that this run fine-tuned: its embeddings, norms or biases "
                         f"differ; expected {dict(manifest.model)}")
    stored = manifest.packed_states(folder)
    models = [model, *load_others(manifest.model, dtype)] if manifest.stored else []
    for name, record in records.items():
        of_base = manifest.stored or record.format.is_base
        if manifest.stored:
            states = [stored_state(file, name, record.format) for file in models]
            state = next((found for found in states[:-1] if tensors_digest(found) == record.sha256), states[-1])
        elif of_base:
            state = pack_for(dense[name].weight.detach(), record.format, dtype, torch.device("cpu"))
        else:
            state = stored.get(name, {})
        if tensors_digest(state) != record.sha256:
            raise ModelError(f"the weights of {name} in the base model are not those that this run trained on; give "
                             f"the base that it used, {manifest.model.get('path')!r}") if of_base else OutputError(
                f"the packed weights of {name} do not have the checksum of the manifest in {folder}: the file of "
                "packed weights is damaged or belongs to another run")
        if not of_base:
            empty = backend_of(record.format).empty_state(record.format, record.shape, dtype)
            found, wanted = ({key: (t.dtype, t.shape) for key, t in tensors.items()} for tensors in (state, empty))
            if found != wanted or not all(t.isfinite().all() for t in state.values() if t.is_floating_point()):
                raise OutputError(f"the packed weights of {name} are not those of {record.format.name} in the shape "
                                  f"{record.shape[0]} x {record.shape[1]}, or not finite; {COPY_AGAIN}")
        yield name, state


def _dense(model: nn.Module, name: str, record: ModuleRecord) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"the base model has no layer {name!r}, which this run quantised") from error
    if not isinstance(module, nn.Linear | nn.Embedding) or tuple(module.weight.shape) != record.shape:
        raise ModelError(f"the base model's {name} is {module}; this run quantised a weight of "
                         f"{record.shape[0]} x {record.shape[1]}")
    return module


def _adapted(model: Any, tensors: Mapping[str, Tensor], manifest: Manifest, device: torch.device) -> Any:
    """Attach the run's adapter in its own type, with the forward that it was trained with, to the last bit."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) != 1:
        raise OutputError(f"the weights of the adapter are of several types: {sorted(map(str, kinds))}")
    ranks = {name: record.rank for name, record in manifest.modules.items()}
    wrapped = attach(model, ranks, manifest.alpha_over_rank, 0, kinds.pop())
    for name, pair in adapter_parameters(model).items():
        for matrix, parameter in pair.items():
            parameter.data = tensors[f"base_model.model.{name}.lora_{matrix}.weight"].to(device)
            parameter.requires_grad_(False)
    return wrapped
