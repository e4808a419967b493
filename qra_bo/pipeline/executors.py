"""From a checked configuration to an executor: in this process, in worker processes, or on Ray."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.given import GivenProfileExecutor
from qra_bo.execution.limits import Limits
from qra_bo.execution.local import LocalExecutor
from qra_bo.memory.budget import parse_size
from qra_bo.pipeline.build import prepare_worker_environment
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import DeviceError

STARTUP_SECONDS = 1800.0
ORACLE = "qra_bo.pipeline.build:make_oracle"


def make_executor(config: RunConfig, folder: Path, profile: SensitivityProfile | None = None) -> Executor:
    """Worker processes or Ray for real fine-tuning and wherever several workers are asked for; what costs nothing runs
    in this process. With ``profile`` none is measured.

    Raises:
        DeviceError: If there are fewer GPUs than workers, or a cluster lacks what a worker takes.
        MissingExtraError: If Ray is asked for and not installed.
    """
    executor = _executor(config, {"config": config.to_dict(), "out": str(folder)})
    return executor if profile is None else GivenProfileExecutor(executor, profile, *tokens_before(config))


class TokensBefore(NamedTuple):
    """Tokens spent before the first evaluation besides the profile: those that go forward and backward, and those that
    only go forward."""

    training: int
    forward: int


def tokens_before(config: RunConfig) -> TokensBefore:
    """What choosing codes takes, and what all adapters start from."""
    if config.oracle.name != "finetune":
        return TokensBefore(0, 0)
    length = config.train.length
    codes = length * max(1, config.quantizer.tokens // length) if config.quantizer.rounding == "gptq" else 0
    text = length * config.data.calibration
    return TokensBefore(text * (config.adapter.init == "gradient"), codes + text * (config.adapter.init == "eva"))


def _executor(config: RunConfig, kwargs: dict[str, Any]) -> Executor:
    real, settings = config.oracle.name == "finetune", config.executor
    if real:
        prepare_worker_environment()
    if settings.name == "ray":
        from qra_bo.execution.on_ray import RayExecutor, Resources

        memory = None if settings.memory is None else parse_size(settings.memory)
        return RayExecutor(OracleSpec(ORACLE, {**kwargs, "out": str(Path(kwargs["out"]).absolute())}), limits(config),
                           settings.workers, Resources(settings.cpus, settings.gpus, memory), settings.address)
    if not real and settings.workers == 1:
        from qra_bo.pipeline.build import make_oracle

        return InProcessExecutor(make_oracle(**kwargs))
    devices = worker_devices(config) if real else [config.device] * settings.workers
    threads = None
    if real and len(devices) > 1 and devices[0] == "cpu":
        threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    return LocalExecutor([OracleSpec(ORACLE, {**kwargs, "config": {**kwargs["config"], "device": device},
                                              "threads": threads}) for device in devices], limits(config))


def limits(config: RunConfig) -> Limits:
    """How long a worker may take."""
    worker = config.worker
    return Limits(worker.deadline_seconds, worker.slowdown, STARTUP_SECONDS, worker.retries)


def is_remote(config: RunConfig) -> bool:
    """Whether evaluations run on other machines, so that this one need not hold a model."""
    return config.executor.name == "ray" and config.executor.address is not None


def worker_devices(config: RunConfig) -> list[str]:
    """The device of every local worker: with several of them a GPU each, or the CPU that they share.

    Raises:
        DeviceError: If there are fewer GPUs than workers, or ``device`` names one of them.
    """
    n = config.executor.workers
    if n == 1:
        return [config.device]
    from qra_bo.utils.device import resolve_device

    device = resolve_device(config.device)
    if device == "cpu":
        return ["cpu"] * n
    import torch

    if ":" in device or torch.cuda.device_count() < n:
        raise DeviceError(f"executor.workers={n} takes as many GPUs, one each, with device=auto or device=cuda; got "
                          f"device={config.device}, and torch sees {torch.cuda.device_count()}")
    return [f"cuda:{i}" for i in range(n)]
