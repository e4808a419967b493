"""The oracle that really fine-tunes, from a checked configuration. Loads torch."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from qra_bo.config import RunConfig, gptq_sequences, make_space, make_spec
from qra_bo.finetune import gradient_profile, profiling
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.checked_tensors import fast_hash
from qra_bo.finetune.data.load import check_tokens, data_notes, load_data
from qra_bo.finetune.data.records import DataSplits, TokenBlocks
from qra_bo.finetune.models.files import facts_of
from qra_bo.finetune.models.host_linear import is_too_large, keep_on_host
from qra_bo.finetune.models.hub import fetch
from qra_bo.finetune.models.load import cast_parameters, load_base, use_fast_attention
from qra_bo.finetune.oracle import FinetuneOracle, FinetuneSettings
from qra_bo.finetune.quantization import gptq
from qra_bo.finetune.quantization.bank import LayerBank, refuse_reproducing_formats
from qra_bo.finetune.quantization.base import backend_of, storage_bytes
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.finetune.quantization.stored_model import load_others, load_stored
from qra_bo.finetune.training.learning_rate import RATE_RULES
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.finetune.training.loss import check_isolation
from qra_bo.finetune.training.optimizer import AdamWSettings
from qra_bo.finetune.training.trial_run import CheckpointStore
from qra_bo.memory import format_size
from qra_bo.memory.embeddings import table_formats
from qra_bo.memory.serving import ANY
from qra_bo.pipeline.exports import refuse_base
from qra_bo.pipeline.host_memory import keeps_dense, packed_bytes, spills
from qra_bo.pipeline.pricing import bank_formats, card_capability
from qra_bo.space import DecoderSpec, SearchSpace, StorageFormat
from qra_bo.space.decoder import spec_from_model, with_adapters
from qra_bo.utils.device import resolve_device, resolve_dtype
from qra_bo.utils.errors import DeviceError, ModelError
from qra_bo.utils.files import cache_folder, free_on_disk
from qra_bo.utils.version import versions

LIBRARIES = ("torch", "transformers", "bitsandbytes", "hqq")
"""Packages whose releases decide codes and sensitivities."""


def make_finetune(cfg: RunConfig, out: Path, room: int | None = None) -> FinetuneOracle:
    """Load the base model and the data, quantise every layer, and return the oracle with checkpoints below ``out``.
    Of a GPU a run may use ``room`` bytes; ``None``: all.

    Raises:
        UserError: If model, data or device can't be used.
    """
    device = torch.device(resolve_device(cfg.device))
    if device.type == "cuda" and device.index is not None:  # torch refuses to set one without an index
        torch.cuda.set_device(device)  # kernels of libraries, and statistics without an index, go to the current device
    dtype = getattr(torch, resolve_dtype(cfg.dtype, device.type, card_capability(cfg, device.type)))
    if cfg.executor.name == "ray":
        fetch(cfg.model, bars=False)  # the driver's cache may be on another machine
    model, tokenizer = load_stored(cfg.model, dtype) if cfg.stored else load_base(cfg.model)
    base = facts_of(model, tokenizer)
    if cfg.task in ("search", "finetune"):
        refuse_base(cfg, model, tokenizer)
    spec = make_spec(cfg) if cfg.stored else with_adapters(spec_from_model(model, cfg.model_name), cfg.adapter.experts)
    if not cfg.stored and spec.linears != make_spec(cfg).linears:
        raise ModelError(f"the shapes of {cfg.model_name!r} in conf/model differ from those of the model itself; "
                         "mend its numbers, or use +model=hf model.path=...")
    linears = [linear.name for linear in spec.linears]
    cast_parameters(model, dtype, linears)
    states = {(name, fmt): file.get_submodule(name).packed_state() for (fmt, _), file in zip(
        spec.linears[0].stored[::-1], (model, *load_others(cfg.model, dtype)), strict=False) for name in linears}
    packed_tensors = {":".join((*key, part)): tensor for key, state in states.items()  # a state dict may lack scales
                      for part, tensor in state.items()}
    weights = fast_hash({**model.state_dict(), **packed_tensors})
    kernel = use_fast_attention(model, device, dtype)
    space = make_space(cfg, spec)
    formats = bank_formats(cfg, space)
    keep_dense = device.type == "cpu" and keeps_dense(spec, formats)
    pack_embeddings(model, cfg.embedding_bits, dtype, device, keep_dense=keep_dense)
    on_host = not cfg.stored and is_too_large(storage_bytes(model.state_dict().values()), device, room)
    # The bank itself puts copies on the device, where there is room; codes of a single file are there once.
    apart = len(spec.linears[0].stored) != 1 and (device.type != "cpu" or on_host)
    keep_on_host(model, [name for name in linears if apart or not (
        cfg.stored or model.get_submodule(name).weight.dtype == dtype)])
    model.to(device)
    data, overlap = split_calibration(load_data(cfg.data, tokenizer, cfg.train.length, isolate=cfg.train.isolated),
                                      gptq_sequences(cfg, spec), cfg.data.calibration)
    check_tokens(data, tokenizer, spec.vocab_size, cfg.model_name)
    if cfg.train.isolated:
        check_isolation(model, cfg.train.length)
    facts = {"weights": weights, "dtype": str(dtype), "device": device.type, "versions": versions(LIBRARIES)}
    tables = table_formats(spec, cfg.embedding_bits)
    packed = facts | encoders((*formats, *tables))
    text = data.train.take(gptq_sequences(cfg, spec))
    # The same weights give other activations where their configuration (e.g. of RoPE) was changed.
    # Codes are chosen for the ladder alone: those of a run without references serve one with them.
    codes, profiles = caches(cfg, facts | encoders((*space.formats, *tables)) | {
        "embeddings": cfg.embedding_bits, "config": model.config.to_json_string(), "linears": linears,
        "units": [unit.name for unit in space.units]}, text, data.calibration, out)
    bank_store = None
    if spills(cfg, spec, space, device.type):
        bank_store = TensorStore(cache_folder("bank"), packed, out)
        check_disk(cfg, spec, space, bank_store, device.type)
    rounding = None  # formats that the ladder lacks stay round-to-nearest in any case
    if cfg.quantizer.rounding != "rtn":
        rounding = Rounding(model, linears, space.formats, torch.from_numpy(text.input_ids), model.device, codes,
                            torch.from_numpy(text.is_text))
    bank = LayerBank(model, spec, formats, dtype, device, rounding=rounding, keep_dense=keep_dense, store=bank_store,
                     dense_on_device=cfg.stored or (apart and not on_host), states=states)
    bank.restore_dense()
    refuse_reproducing_formats(bank, () if cfg.stored else space.formats)  # whose files are what they are
    looked_at = replace(data, validation=data.validation.take(cfg.eval.on("validation")),
                        test=data.test.take(cfg.eval.on("test")))
    return FinetuneOracle(looked_at, space.units, space.formats, bank, finetune_settings(cfg),
                          {"attention": kernel, "data": data.source, "data_tokens": data.n_tokens,
                           "data_render": data.render, "data_chats": data.chats, "data_facts": asdict(data.train.facts),
                           "notes": [*data_notes(cfg.data, data), *(overlap if cfg.task != "finetune" else ())],
                           "model_sha256": weights, "base": base,
                           "model_revision": getattr(model.config, "_commit_hash", None),
                           "base_origin": getattr(model, "base_origin", None),  # of random weights none
                           "base_on": "host" if on_host else device.type},
                          tokenizer, CheckpointStore(out / "checkpoints"), profiles)


def split_calibration(data: DataSplits, chosen_on: int, n: int) -> tuple[DataSplits, list[str]]:
    """Measure sensitivities on the ``n`` sequences after those ``chosen_on`` which codes are chosen: on these, formats
    look better than they are. Where the training split is too short they share some, which a note says."""
    taken, start = min(chosen_on, len(data.train)), max(0, min(chosen_on, len(data.train) - n))
    notes = [f"codes are chosen on {taken} of the {len(data.train)} training sequences, and sensitivities are measured "
             f"on {min(taken - start, n)} of the same, where formats look better than on new text; give more data, or "
             "a smaller quantizer.tokens or data.calibration"] if start < taken else []
    return replace(data, calibration=data.train.take(n, start)), notes


def check_disk(cfg: RunConfig, spec: DecoderSpec, space: SearchSpace, store: TensorStore, device_type: str) -> None:
    """Refuse a run whose packed layers, which all workers of this machine map from ``store``, the disk can't hold.

    Raises:
        DeviceError: If the disk has not the space.
    """
    formats = bank_formats(cfg, space)
    missing = max(0.0, 1 - store.count / (len(spec.linears) * sum(not fmt.is_base for fmt in formats)))
    size, place = round(missing * packed_bytes(cfg, spec, space, device_type)), cache_folder("bank")
    if size > (free := free_on_disk(place)):
        raise DeviceError(f"the packed layers of {cfg.model_name} go to disk, as they take more RAM than "
                          f"worker.spill_above={cfg.worker.spill_above} allows; they need {format_size(size)} and the "
                          f"disk of {place} has {format_size(free)} free: free some, name another folder by the "
                          "environment variable QRA_BO_CACHE, name fewer bits, or raise worker.spill_above")


def finetune_settings(cfg: RunConfig) -> FinetuneSettings:
    """Return the settings of trainer, adapters and evaluation."""
    t = cfg.train
    optimizer = AdamWSettings((t.betas[0], t.betas[1]), t.eps, t.weight_decay, t.clip, t.optimizer)
    train = TrainSettings(t.batch, t.accumulate, RATE_RULES[cfg.adapter.lr_rule], cfg.fidelity.high,
                          t.warmup, t.lr_floor, t.logits_chunk, t.checkpointing, optimizer)
    # The files of a program that serves the result are not written yet: their bytes are known by arithmetic alone.
    scope = None if cfg.memory.scope == "stored" and cfg.serve != ANY else cfg.memory.scope
    return FinetuneSettings(train, cfg.adapter.alpha_over_rank, cfg.ranks[-1], scope, cfg.worker.checkpoint_seconds,
                            cfg.profiling == "gradients")


def encoders(formats: Iterable[StorageFormat]) -> dict[str, Any]:
    """Return the versions of the encoders of formats, as a fact of a key."""
    return {"encoders": {fmt.backend: backend_of(fmt).VERSION for fmt in formats}}


def caches(cfg: RunConfig, facts: dict[str, Any], text: TokenBlocks, calibration: TokenBlocks,
           run: Path) -> tuple[TensorStore, TensorStore]:
    """Return what is kept between runs of a model: chosen codes, and the profile.

    Codes are chosen on ``text``, sensitivities are measured on ``calibration``. ``facts`` determine the activations and
    the libraries' codes; ``run`` is the folder that uses the results.
    """
    codes = facts if cfg.quantizer.rounding == "rtn" else {
        **facts, "gptq": gptq.VERSION, "formats": cfg.format_names, "text": fast_hash({
            "ids": torch.from_numpy(text.input_ids), "is_text": torch.from_numpy(text.is_text)})}
    profile = {"profile": profiling.VERSION, "formats": cfg.format_names, "batch": cfg.train.batch,
               "largest_rank": cfg.ranks[-1], "calibration": fast_hash({
                   "ids": torch.from_numpy(calibration.input_ids), "labels": torch.from_numpy(calibration.labels)})}
    if cfg.profiling == "gradients":
        profile["gradients"] = gradient_profile.VERSION
    return (TensorStore(cache_folder("codes"), codes, run),
            TensorStore(cache_folder("profiles"), {**codes, "measured": profile}, run))
