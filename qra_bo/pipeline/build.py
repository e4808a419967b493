"""From a checked configuration to objects: decoder, space, memory, oracle."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig, config_from_dict, make_space, make_spec
from qra_bo.config.groups import BenchmarkOracleConfig, OwnOracleConfig, SyntheticOracleConfig
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.oracle.protocol import Oracle
from qra_bo.space import DecoderSpec
from qra_bo.utils.device import BYTES, resolve_dtype

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
"""For a worker on a CPU: glibc keeps freed memory instead of returning every large tensor to the kernel, whose
zeroing of fresh pages cost a fifth of a training step (4 x 128 tokens of SmolLM2-135M, 2 cores)."""


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
    if isinstance(cfg.oracle, OwnOracleConfig):
        own: Oracle = cfg.oracle.make(config=cfg, space=space, folder=Path(out))
        return own
    if isinstance(cfg.oracle, BenchmarkOracleConfig):
        from qra_bo.oracle.emulator.oracle import load_oracle  # loads torch for its network

        return load_oracle(Path(str(cfg.oracle.table)), cfg.oracle.emulator, space, noise=cfg.oracle.noise,
                           checkpoints=checkpoints)
    assert isinstance(cfg.oracle, SyntheticOracleConfig)
    from qra_bo.oracle.synthetic import SyntheticOracle  # loads scipy, which planning memory does without

    return SyntheticOracle(space, seed=cfg.seed, noise=cfg.oracle.noise, high_steps=cfg.fidelity.high,
                           tokens_per_step=cfg.train.batch * cfg.train.length, eval_tokens=cfg.eval.tokens,
                           calibration_tokens=cfg.data.calibration * cfg.train.length, record_at=(),
                           checkpoints=checkpoints)


def prepare_worker_environment() -> None:
    """Set the environment of spawned workers; values that the user set are left alone."""
    for name, value in {**MALLOC, "TQDM_DISABLE": "1"}.items():  # its bars would run through the run's own display
        os.environ.setdefault(name, value)
