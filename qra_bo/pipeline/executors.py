"""From a checked configuration to an executor: in this process, in worker processes, or on Ray."""

from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.on_ray import RayExecutor, Resources
from qra_bo.execution.pool import Limits
from qra_bo.memory.budget import parse_size
from qra_bo.pipeline.build import make_oracle, prepare_worker_environment
from qra_bo.utils.device import cores, resolve_device
from qra_bo.utils.errors import DeviceError

STARTUP_SECONDS = 1800.0
ORACLE = "qra_bo.pipeline.build:make_oracle"


def make_executor(config: RunConfig, folder: Path) -> Executor:
    """Return worker processes or Ray for real fine-tuning and wherever several workers are asked for; a simulation runs
    in this process.

    Raises:
        DeviceError: If there are fewer GPUs than workers, or a cluster lacks the resources of a worker.
        MissingExtraError: If Ray is asked for and not installed.
    """
    real, settings = config.oracle.trains, config.executor
    kwargs: dict[str, Any] = {"config": config.to_dict(), "out": str(folder)}
    if real:
        prepare_worker_environment()
    if settings.name == "ray":
        memory = None if settings.memory is None else parse_size(settings.memory)
        return RayExecutor(OracleSpec(ORACLE, {**kwargs, "out": str(folder.absolute())}), limits(config),
                           settings.workers, Resources(settings.cpus, settings.gpus, memory), settings.address)
    if not real and settings.workers == 1:
        return InProcessExecutor(make_oracle(**kwargs))
    devices = worker_devices(config) if real else [config.device] * settings.workers
    threads = None
    if real and len(devices) > 1 and devices[0] == "cpu":
        threads = max(1, cores() // len(devices))
    return LocalExecutor([OracleSpec(ORACLE, {**kwargs, "config": {**kwargs["config"], "device": device},
                                              "threads": threads}) for device in devices], limits(config))


def limits(config: RunConfig) -> Limits:
    """Return how long a worker may take."""
    worker = config.worker
    return Limits(worker.deadline_seconds, worker.slowdown, STARTUP_SECONDS, worker.retries)


def is_remote(config: RunConfig) -> bool:
    """Return whether trials run on other machines, so that this one need not hold a model."""
    return config.executor.name == "ray" and config.executor.address is not None


def worker_devices(config: RunConfig) -> list[str]:
    """Return the device of every local worker: with several of them a GPU each, or the CPU that they share.

    Raises:
        DeviceError: If there are fewer GPUs than workers, or ``device`` names one of them.
    """
    n = config.executor.workers
    if n == 1:
        return [config.device]
    device = resolve_device(config.device)
    if device == "cpu":
        return ["cpu"] * n
    import torch  # a simulation does without it

    if ":" in device or torch.cuda.device_count() < n:
        raise DeviceError(f"executor.workers={n} takes as many GPUs, one each, with device=auto or device=cuda; got "
                          f"device={config.device}, and torch sees {torch.cuda.device_count()}")
    return [f"cuda:{i}" for i in range(n)]
