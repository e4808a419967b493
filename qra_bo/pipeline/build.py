"""From a checked configuration to objects: decoder, space, memory, oracle."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qra_bo.config import RunConfig, config_from_dict, make_space, make_spec
from qra_bo.config.groups import BenchmarkOracleConfig, OwnOracleConfig, SyntheticOracleConfig
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, StorageFormat
from qra_bo.utils.device import BYTES, resolve_dtype
from qra_bo.utils.errors import ModelError
from qra_bo.utils.files import cache_folder

if TYPE_CHECKING:
    from qra_bo.finetune.cache import ProfileCache, TensorStore
    from qra_bo.finetune.data.records import DataSplits
    from qra_bo.finetune.oracle import FinetuneOracle
    from qra_bo.finetune.quantization.rounding import Rounding
    from qra_bo.oracle.protocol import Oracle

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
"""For a worker on a CPU: glibc keeps freed memory instead of returning every large tensor to the kernel, whose
zeroing of fresh pages cost a fifth of a training step (4 x 128 tokens of SmolLM2-135M, 2 cores)."""


def make_memory(cfg: RunConfig, spec: DecoderSpec, device_type: str,
                allowance: Allowance | None = None) -> MemoryModel:
    """The memory model of the configured trainer on a device type (``"cpu"`` or ``"cuda"``).

    Args:
        cfg: The configuration.
        spec: The decoder.
        device_type: Where it trains.
        allowance: What was measured of the device, or ``None`` for what is assumed of its type.
    """
    compute = BYTES[resolve_dtype(cfg.dtype, device_type)]
    shape = TrainShape(cfg.train.batch, cfg.train.length, cfg.train.checkpointing, compute, cfg.train.optimizer,
                       logits_chunk=cfg.train.logits_chunk, device=device_type, stored_dtype_bytes=compute,
                       eval_batch=min(cfg.eval.batch, max(1, cfg.eval.tokens // cfg.train.length)))
    return MemoryModel(spec, shape, cfg.memory.scope, allowance)


class BytesPredictor:
    """Predicted bytes of any allocation, on the ladders or off them (uniform baselines have ranks that no ladder holds)."""

    def __init__(self, memory: MemoryModel, space: SearchSpace) -> None:
        self.memory, self.space = memory, space
        self._cached = cache(self._predict)

    def __call__(self, allocation: Allocation) -> int:
        return self._cached(allocation)

    def space_of(self, allocation: Allocation) -> SearchSpace:
        """A space that holds the allocation: its own formats and ranks as ladders."""
        formats = sorted({f: parse_format(f) for f in allocation.formats}.values(),
                         key=lambda f: (f.bits, f.name))
        return SearchSpace(self.space.units, tuple(formats), Ladder("ranks", tuple(sorted(set(allocation.ranks)))))

    def breakdown(self, allocation: Allocation) -> dict[str, int]:
        """Bytes by part in the phase that decides."""
        return self.memory.breakdown(self.space_of(allocation), allocation)

    def _predict(self, allocation: Allocation) -> int:
        space = self.space_of(allocation)
        return int(self.memory.table(space).totals(space.encode(allocation)[None, :])[0])


def make_oracle(config: Mapping[str, Any], out: str, threads: int | None = None) -> "Oracle":
    """The configured oracle; called inside the worker process.

    Args:
        config: ``RunConfig.to_dict()``.
        out: Folder of the run: checkpoints and the bank's files go below it.
        threads: Threads that it trains with; ``None`` leaves that to torch.
    """
    cfg = config_from_dict(config)
    if isinstance(cfg.oracle, OwnOracleConfig):
        own: Oracle = cfg.oracle.make(config=cfg, space=make_space(cfg, make_spec(cfg)), folder=Path(out))
        return own
    if isinstance(cfg.oracle, SyntheticOracleConfig):
        from qra_bo.oracle.synthetic.oracle import SyntheticOracle

        spec = make_spec(cfg)
        return SyntheticOracle(make_space(cfg, spec), seed=cfg.seed, noise=cfg.oracle.noise,
                               high_steps=cfg.fidelity.high,
                               tokens_per_step=cfg.train.batch * cfg.train.length, eval_tokens=cfg.eval.tokens,
                               calibration_tokens=cfg.data.calibration * cfg.train.length,
                               record_at=(),
                               checkpoints=Path(out) / "checkpoints")
    if isinstance(cfg.oracle, BenchmarkOracleConfig):
        from qra_bo.oracle.emulator.oracle import load_oracle

        return load_oracle(Path(str(cfg.oracle.table)), cfg.oracle.emulator, make_space(cfg, make_spec(cfg)),
                           noise=cfg.oracle.noise, checkpoints=Path(out) / "checkpoints")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return make_finetune(cfg, Path(out))


def make_finetune(cfg: RunConfig, out: Path) -> "FinetuneOracle":
    """The oracle that really fine-tunes. Loads the base model."""
    import torch

    from qra_bo.finetune.adapters.lora import AdapterSettings
    from qra_bo.finetune.cache import weights_fingerprint
    from qra_bo.finetune.data.load import data_notes, load_data
    from qra_bo.finetune.models.attention import use_fast_attention
    from qra_bo.finetune.models.host_linear import is_too_large, keep_on_host
    from qra_bo.finetune.models.load import commit_of, load_base
    from qra_bo.finetune.oracle import FinetuneOracle, FinetuneSettings
    from qra_bo.finetune.quantization.bank import LayerBank
    from qra_bo.finetune.quantization.base import storage_bytes
    from qra_bo.finetune.quantization.once_quantised import refuse_reproducing_formats
    from qra_bo.finetune.training.checkpoints import CheckpointStore
    from qra_bo.space.specs import spec_from_model
    from qra_bo.utils.device import resolve_device

    device = torch.device(resolve_device(cfg.device))
    dtype = getattr(torch, resolve_dtype(cfg.dtype, device.type))
    model, tokenizer = load_base(cfg.model)
    model = model.to(dtype=dtype)
    base = {"weights": weights_fingerprint(model), "dtype": str(dtype)}
    kernel = use_fast_attention(model, device, dtype)
    spec = spec_from_model(model, cfg.model_name)
    expected = make_spec(cfg)
    if spec.linears != expected.linears:
        raise ModelError(f"the shapes of {cfg.model_name!r} in conf/model differ from those of the model itself; "
                         "mend its numbers, or use +model=hf model.path=...")
    on_host = is_too_large(storage_bytes(model.state_dict()), device)
    if on_host:
        keep_on_host(model, [linear.name for linear in spec.linears])
    model = model.to(device)
    space = make_space(cfg, spec)
    data = load_data(cfg.data, tokenizer, cfg.train.length)
    blocks = max(1, cfg.eval.tokens // cfg.train.length)
    settings = FinetuneSettings(
        train_settings(cfg), AdapterSettings(cfg.adapter.alpha_over_rank, cfg.adapter.init, cfg.adapter.iterations),
        blocks, blocks, cfg.data.calibration, (), cfg.ranks[-1], cfg.memory.scope,
        cfg.worker.checkpoint_seconds)
    formats = bank_formats(space)
    bank = LayerBank(model, spec, formats, dtype, device,
                     keep_dense=device.type == "cpu" and keeps_dense(spec, formats),
                     rounding=make_rounding(cfg, model, spec, space, data, base))
    refuse_reproducing_formats(bank, space.formats)
    return FinetuneOracle(model, data, space.units, space.formats, bank, settings,
                          CheckpointStore(out / "checkpoints"), device, dtype,
                          profile_cache(cfg, base, device.type, data.sha256),
                          {"attention": kernel, "data": data.source, "data_tokens": data.n_tokens,
                           "notes": data_notes(cfg.data, data),
                           "model_sha256": base["weights"], "model_revision": commit_of(model),
                           "base_on": "host" if on_host else device.type},
                          factor_store(cfg, base, device.type, data.sha256), tokenizer)


def make_rounding(cfg: RunConfig, model: Any, spec: DecoderSpec, space: SearchSpace, data: "DataSplits",
                  base: Mapping[str, str]) -> "Rounding | None":
    """What chooses the codes of the ladder's formats; those of references that the ladder lacks stay the nearest."""
    if cfg.quantizer.rounding == "rtn":
        return None
    import torch

    from qra_bo.finetune.cache import TensorStore
    from qra_bo.finetune.manifest import package_versions
    from qra_bo.finetune.quantization.rounding import Rounding

    formats = [f for f in space.formats if f.bits < 16]
    ids = torch.from_numpy(data.train.input_ids[:max(1, cfg.quantizer.tokens // cfg.train.length)])
    facts = {**base, "device": model.device.type, "versions": package_versions(), **codes_facts(cfg, data.sha256)}
    store = TensorStore(cache_folder("codes"), facts)
    return Rounding(model, [linear.name for linear in spec.linears], formats, ids, model.device, store)


def factor_store(cfg: RunConfig, base: Mapping[str, str], device_type: str, data_sha256: str) -> "TensorStore":
    """Where the decomposed quantisation residuals of this model are kept between runs."""
    from qra_bo.finetune.cache import TensorStore
    from qra_bo.finetune.manifest import package_versions

    return TensorStore(cache_folder("factors"), {
        **base, "device": device_type, "versions": package_versions(), **codes_facts(cfg, data_sha256)})


def profile_cache(cfg: RunConfig, base: Mapping[str, str], device_type: str, data_sha256: str) -> "ProfileCache":
    """Where the profile of this model on this data is kept between runs."""
    from qra_bo.finetune.cache import ProfileCache
    from qra_bo.finetune.manifest import package_versions

    return ProfileCache(cache_folder("profiles"), {
        **base, "device": device_type, "versions": package_versions(), "data": data_sha256,
        "granularity": cfg.granularity, "formats": cfg.format_names, "calibration": cfg.data.calibration,
        "length": cfg.train.length, "batch": cfg.train.batch, "largest_rank": cfg.ranks[-1],
        **codes_facts(cfg, data_sha256)})


def codes_facts(cfg: RunConfig, data_sha256: str) -> dict[str, Any]:
    """What codes depend on beside the weights, for the keys of caches: nothing where they are the nearest."""
    if cfg.quantizer.rounding == "rtn":
        return {}
    return {"rounding": cfg.quantizer.rounding, "tokens": cfg.quantizer.tokens, "data": data_sha256,
            "length": cfg.train.length, "ladder": cfg.format_names}


def bank_formats(space: SearchSpace) -> tuple[StorageFormat, ...]:
    """The ladder's formats and those of the references (NF4 and 16 bits), each once."""
    names = dict.fromkeys([*(f.name for f in space.formats), "nf4", "fp16"])
    return tuple(parse_format(name) for name in names)


def keeps_dense(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> bool:
    """Whether a bank on a CPU keeps unpacked weights too: where they take less than a quarter of the RAM."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * spec.linear_numel * len(formats) < physical // 4


def train_settings(cfg: RunConfig) -> Any:
    """The trainer's settings."""
    from qra_bo.finetune.training.loop import TrainSettings
    from qra_bo.finetune.training.optimizer import AdamWSettings

    t = cfg.train
    optimizer = AdamWSettings((t.betas[0], t.betas[1]), t.eps, t.weight_decay, t.clip, t.optimizer)
    return TrainSettings(t.batch, cfg.adapter.lr, cfg.adapter.lr_exponent, t.warmup, t.lr_floor, t.logits_chunk,
                         t.checkpointing, optimizer, cfg.eval.batch)


def prepare_worker_environment() -> None:
    """Set what a spawned worker inherits; a value of the user's own is left alone."""
    for name, value in {**MALLOC, "TQDM_DISABLE": "1"}.items():  # its bars would run through the run's own display
        os.environ.setdefault(name, value)
