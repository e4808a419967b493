"""From a checked configuration to objects: decoder, space, memory, oracle."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.config.decode import build as decode
from qra_bo.config.decode import check
from qra_bo.config.schema import RunConfig
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.oracle.protocol import Oracle
from qra_bo.space import DecoderSpec, Ladder, SearchSpace, make_units
from qra_bo.space.specs import OWN_CODE, spec_from_hf_config, spec_from_numbers
from qra_bo.utils.device import BYTES, resolve_dtype
from qra_bo.utils.errors import ConfigError, ModelError

NUMBERS = ("n_layers", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "tied",
           "attention_bias")
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
"""For a worker on a CPU: glibc keeps freed memory instead of returning every large tensor to the kernel, whose
zeroing of fresh pages cost a fifth of a training step (4 x 128 tokens of SmolLM2-135M, 2 cores)."""


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """Inverse of ``RunConfig.to_dict``.

    Raises:
        ConfigError: If it is not the dictionary of a configuration.
    """
    formats = {int(bits): tuple(names) for bits, names in data["quantizer"]["formats"].items()}
    restored = {**data, "quantizer": {**data["quantizer"], "formats": formats}}
    problems = check(RunConfig, restored)
    if problems:
        raise ConfigError([p.message for p in problems])
    config: RunConfig = decode(RunConfig, restored)
    return config


def make_spec(cfg: RunConfig) -> DecoderSpec:
    """Shapes of the decoder: from the numbers in ``conf/model`` where they are given, else from its own config.

    Raises:
        ModelError: If there are no numbers and no configuration at hand.
    """
    model = cfg.model
    if model["n_layers"] is not None:
        return spec_from_numbers(cfg.model_name, model["family"], **{key: model[key] for key in NUMBERS})
    return spec_from_hf_config(hf_config(cfg), cfg.model_name, trust_remote_code=bool(model["trust_remote_code"]))


def hf_config(cfg: RunConfig) -> Any:
    """The transformers configuration at ``model.path``.

    Raises:
        ModelError: If there is none.
    """
    model = cfg.model
    if not model["path"]:
        raise ModelError("+model=hf needs model.path: a hub id such as ORG/NAME, or a folder with config.json; "
                         "got nothing")
    from transformers import AutoConfig

    from qra_bo.finetune.models.remote_code import may_run

    try:
        return AutoConfig.from_pretrained(model["path"], trust_remote_code=may_run(model),
                                          revision=model["revision"] or "main")
    except Exception as error:  # of a malformed file transformers raises whatever it stumbles on
        raise ModelError(_unreadable(str(model["path"]), error)) from error


def _unreadable(path: str, error: Exception) -> str:
    """Why there is no configuration of ``model.path``: nothing there, or what transformers says in its first line."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    folder = Path(path)
    if "trust_remote_code" in str(error):
        return f"model.path={path!r} {OWN_CODE}"
    if not folder.is_dir():
        return (f"model.path={path!r} is no folder here, and as a hub id it can't be had ({said}); give a folder with "
                "config.json and *.safetensors, or a hub id ORG/NAME with a network, and for a gated model a login")
    if not (folder / "config.json").is_file():
        return f"the folder model.path={path!r} holds no config.json; give one that transformers saved a model in"
    return f"{folder / 'config.json'} can't be read ({said}); give a folder that transformers saved a model in"


def make_space(cfg: RunConfig, spec: DecoderSpec) -> SearchSpace:
    """Units and ladders of the search."""
    formats = tuple(parse_format(name) for name in cfg.format_names)
    return SearchSpace(make_units(spec, cfg.granularity), formats, Ladder("ranks", cfg.ranks))


def make_memory(cfg: RunConfig, spec: DecoderSpec, device_type: str,
                allowance: Allowance | None = None) -> MemoryModel:
    """Return the memory model of the configured trainer on a device type (``"cpu"`` or ``"cuda"``).

    Args:
        cfg: The configuration.
        spec: The decoder.
        device_type: Where it trains.
        allowance: Measured on the device, or ``None`` for the assumed one of its type.
    """
    compute = BYTES[resolve_dtype(cfg.dtype, device_type)]
    shape = TrainShape(cfg.train.batch, cfg.train.length, cfg.train.checkpointing, compute, cfg.train.optimizer,
                       logits_chunk=cfg.train.logits_chunk, device=device_type, stored_dtype_bytes=compute,
                       eval_batch=min(cfg.eval.batch, max(1, cfg.eval.tokens // cfg.train.length)))
    return MemoryModel(spec, shape, cfg.memory.scope, allowance)


def make_oracle(config: Mapping[str, Any], out: str, threads: int | None = None) -> Oracle:
    """Return the configured oracle; called inside the worker process.

    Args:
        config: ``RunConfig.to_dict()``.
        out: Folder of the run; checkpoints go below it.
        threads: Threads that it trains with; ``None`` leaves that to torch.
    """
    cfg, checkpoints = config_from_dict(config), Path(out) / "checkpoints"
    if cfg.oracle.trains:
        import torch  # a simulation does without it

        from qra_bo.pipeline.finetune_oracle import make_finetune  # loads torch

        if threads is not None:
            torch.set_num_threads(threads)
        return make_finetune(cfg, Path(out))
    space = make_space(cfg, make_spec(cfg))
    if cfg.oracle.name == "benchmark":
        from qra_bo.oracle.emulator.oracle import load_oracle  # loads torch for its network

        return load_oracle(Path(str(cfg.oracle.table)), cfg.oracle.emulator, space, noise=cfg.oracle.noise,
                           checkpoints=checkpoints)
    from qra_bo.oracle.synthetic.oracle import SyntheticOracle  # loads scipy, which planning memory does without

    return SyntheticOracle(space, seed=cfg.seed, noise=cfg.oracle.noise or 0.0, high_steps=cfg.fidelity.high,
                           tokens_per_step=cfg.train.batch * cfg.train.length, eval_tokens=cfg.eval.tokens,
                           calibration_tokens=cfg.data.calibration * cfg.train.length, record_at=(),
                           checkpoints=checkpoints)


def prepare_worker_environment() -> None:
    """Set the environment of spawned workers; values that the user set are left alone."""
    for name, value in {**MALLOC, "TQDM_DISABLE": "1"}.items():  # its bars would run through the run's own display
        os.environ.setdefault(name, value)
