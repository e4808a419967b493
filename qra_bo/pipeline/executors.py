"""Executors: worker processes with a device each, a Ray cluster, or this process."""

import os
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.on_ray import RayExecutor
from qra_bo.execution.pool import Limits
from qra_bo.memory import parse_size
from qra_bo.pipeline.host_memory import HEAP_PAD
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.pipeline.pricing import with_dtype
from qra_bo.utils.device import cores, resolve_device
from qra_bo.utils.errors import DeviceError

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(HEAP_PAD)}
"""For a worker on a CPU: glibc keeps freed memory instead of returning every large tensor to the kernel, whose
zeroing of fresh pages cost a fifth of a training step (4 x 128 tokens of SmolLM2-135M, 2 cores)."""
SPINS = "10000"
"""For a worker on a CPU: turns that a thread of GNU OpenMP spins at a barrier before it sleeps. By default it spins for
milliseconds, which another process that keeps one of the cores busy turns into most of a step. Products in chains, two
threads on two cores: at 1,000, 10,000 and 100,000 turns 10.6, 10.2 and 10.3 s, with one core taken 19.4, 21.4 and
38 s; choosing codes, with both cores free, 25, 13 and 12.4 s."""
STARTUP_SECONDS = 1800.0
ORACLE = "qra_bo.pipeline.oracles:make_oracle"


def prepare_worker_environment() -> None:
    """Set the environment of spawned workers; values that the user set are left alone."""
    for name, value in {**MALLOC, "TQDM_DISABLE": "1"}.items():  # its bars would run through the run's own display
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:  # which the number of spins would overrule
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def make_executor(config: RunConfig, folder: Path, room: int | None = None) -> Executor:
    """Return worker processes or Ray for real fine-tuning and wherever several workers are asked for; a simulation runs
    in this process. All have one compute type (``with_dtype``). Each may use ``room`` bytes of a GPU; ``None``: all.

    Raises:
        DeviceError: If there are fewer GPUs than workers, or a cluster lacks the resources of a worker.
        MissingExtraError: If Ray is asked for and not installed.
    """
    config = with_dtype(config, folder)
    real, settings = config.oracle.trains, config.executor
    kwargs: dict[str, Any] = {"config": config.to_dict(), "out": str(folder), "room": room}
    if real:
        if settings.name == "local" or settings.address is None:  # else this machine holds no model
            from qra_bo.finetune.models.hub import fetch  # its package loads torch where it is used
            fetch(config.model, bars=config.display != "none")
        prepare_worker_environment()
    if settings.name == "ray":
        memory = None if settings.memory is None else parse_size(settings.memory)
        return RayExecutor(OracleSpec(ORACLE, {**kwargs, "out": str(folder.absolute())}), limits(config),
                           settings.workers, {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "memory": memory},
                           settings.address)
    if not real and settings.workers == 1:
        return InProcessExecutor(make_oracle(**kwargs))
    devices = worker_devices(config) if real else [config.device] * settings.workers
    shares_cpu = real and len(devices) > 1 and devices[0] == "cpu"
    threads = max(1, cores() // len(devices)) if shares_cpu else None
    return LocalExecutor([OracleSpec(ORACLE, {**kwargs, "config": {**kwargs["config"], "device": device},
                                              "threads": threads}) for device in devices], limits(config))


def limits(config: RunConfig) -> Limits:
    """Return how long a worker may take, and how often a trial whose worker died or hung is begun again."""
    return Limits(config.worker.deadline_seconds, STARTUP_SECONDS, retries=1)


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
