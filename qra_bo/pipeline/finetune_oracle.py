"""The oracle that really fine-tunes, from a checked configuration. Loads torch."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.finetune.adapters.lora import AdapterSettings
from qra_bo.finetune.cache import ProfileCache, TensorStore, weights_fingerprint
from qra_bo.finetune.data.load import data_notes, load_data
from qra_bo.finetune.manifest import package_versions
from qra_bo.finetune.models.files import files_of
from qra_bo.finetune.models.host_linear import is_too_large, keep_on_host
from qra_bo.finetune.models.load import commit_of, load_base, use_fast_attention
from qra_bo.finetune.oracle import FinetuneOracle, FinetuneSettings
from qra_bo.finetune.quantization.bank import LayerBank, refuse_reproducing_formats
from qra_bo.finetune.quantization.base import storage_bytes
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.finetune.training.optimizer import AdamWSettings
from qra_bo.finetune.training.trial_run import CheckpointStore
from qra_bo.pipeline.build import bank_formats, keeps_dense
from qra_bo.space.decoder import spec_from_model
from qra_bo.utils.device import resolve_device, resolve_dtype
from qra_bo.utils.errors import ModelError
from qra_bo.utils.files import cache_folder


def make_finetune(cfg: RunConfig, out: Path) -> FinetuneOracle:
    """Load the base model and the data, quantise every layer, and return the oracle with checkpoints below ``out``.

    Raises:
        UserError: If model, data or device can't be used.
    """
    device = torch.device(resolve_device(cfg.device))
    dtype = getattr(torch, resolve_dtype(cfg.dtype, device.type))
    begun = time.time()
    model, tokenizer = load_base(cfg.model)
    model.to(dtype=dtype)
    versions = package_versions()
    weights = weights_fingerprint(model, files_of(model), {"model": dict(cfg.model), "dtype": str(dtype),
                                                           "versions": versions, "gguf": version("gguf")}, begun)
    kernel = use_fast_attention(model, device, dtype)
    spec = spec_from_model(model, cfg.model_name)
    if spec.linears != make_spec(cfg).linears:
        raise ModelError(f"the shapes of {cfg.model_name!r} in conf/model differ from those of the model itself; "
                         "mend its numbers, or use +model=hf model.path=...")
    on_host = is_too_large(storage_bytes(model.state_dict()), device)
    if on_host:
        keep_on_host(model, [linear.name for linear in spec.linears])
    model.to(device)
    space, data = make_space(cfg, spec), load_data(cfg.data, tokenizer, cfg.train.length)
    facts = {"weights": weights, "dtype": str(dtype), "device": device.type, "versions": versions}
    codes, factors, profiles = caches(cfg, facts, data.sha256)
    rounding = None  # formats that the ladder lacks stay round-to-nearest in any case
    if cfg.quantizer.rounding != "rtn":
        ids = torch.from_numpy(data.train.input_ids[:max(1, cfg.quantizer.tokens // cfg.train.length)])
        rounding = Rounding(model, [linear.name for linear in spec.linears],
                            [f for f in space.formats if f.bits < 16], ids, model.device, codes)
    formats = bank_formats(space)
    bank = LayerBank(model, spec, formats, dtype, device, rounding=rounding,
                     keep_dense=device.type == "cpu" and keeps_dense(spec, formats))
    refuse_reproducing_formats(bank, space.formats)
    return FinetuneOracle(data, space.units, space.formats, bank, finetune_settings(cfg),
                          CheckpointStore(out / "checkpoints"), profiles,
                          {"attention": kernel, "data": data.source, "data_tokens": data.n_tokens,
                           "notes": data_notes(cfg.data, data), "model_sha256": weights,
                           "model_revision": commit_of(model), "base_on": "host" if on_host else device.type},
                          factors, tokenizer)


def finetune_settings(cfg: RunConfig) -> FinetuneSettings:
    """Return the settings of trainer, adapters and evaluation."""
    t = cfg.train
    optimizer = AdamWSettings((t.betas[0], t.betas[1]), t.eps, t.weight_decay, t.clip, t.optimizer)
    train = TrainSettings(t.batch, t.accumulate, cfg.adapter.lr, cfg.adapter.lr_exponent, t.warmup, t.lr_floor,
                          t.logits_chunk, t.checkpointing, optimizer)
    return FinetuneSettings(
        train, AdapterSettings(cfg.adapter.alpha_over_rank, cfg.adapter.init, cfg.adapter.iterations),
        cfg.eval.sequences, (), cfg.ranks[-1], cfg.memory.scope, cfg.worker.checkpoint_seconds)


def caches(cfg: RunConfig, facts: dict[str, Any], data_sha256: str) -> tuple[TensorStore, TensorStore, ProfileCache]:
    """Return what is kept between runs of this model and data: chosen codes, decomposed residuals, the profile."""
    codes = {} if cfg.quantizer.rounding == "rtn" else {
        "rounding": cfg.quantizer.rounding, "tokens": cfg.quantizer.tokens, "data": data_sha256,
        "length": cfg.train.length, "ladder": cfg.format_names}
    profile = {"data": data_sha256, "granularity": cfg.granularity, "formats": cfg.format_names,
               "calibration": cfg.data.calibration, "length": cfg.train.length, "batch": cfg.train.batch,
               "largest_rank": cfg.ranks[-1]}
    return (TensorStore(cache_folder("codes"), {**facts, **codes}),
            TensorStore(cache_folder("factors"), {**facts, **codes}),
            ProfileCache(cache_folder("profiles"), {**facts, **profile, **codes}))
