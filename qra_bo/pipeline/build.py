"""From a checked configuration to objects: memory model, oracle, executor."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from qra_bo.config import RunConfig, config_from_dict, make_space, make_spec
from qra_bo.config.oracles import OwnOracleConfig, SyntheticOracleConfig
from qra_bo.execution import Executor, InProcessExecutor, Limits, LocalExecutor, OracleSpec
from qra_bo.execution.on_ray import RayExecutor, Resources
from qra_bo.memory import MemoryModel, TrainShape, default_format, parse_size
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.cards import CARDS
from qra_bo.memory.serving import CONSUMERS
from qra_bo.oracle.protocol import Oracle
from qra_bo.space import DecoderSpec, SearchSpace, StorageFormat
from qra_bo.study.comparison import QLORA
from qra_bo.utils.device import (
    BYTES,
    cores,
    expand_segments,
    memory_groups,
    planned_device,
    resolve_device,
    resolve_dtype,
    takes_groups,
)
from qra_bo.utils.errors import DeviceError

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}
"""For a worker on a CPU: glibc keeps freed memory instead of returning every large tensor to the kernel, whose
zeroing of fresh pages cost a fifth of a training step (4 x 128 tokens of SmolLM2-135M, 2 cores)."""
SPINS = "10000"
"""For a worker on a CPU: turns that a thread of GNU OpenMP spins at a barrier before it sleeps. By default it spins for
milliseconds, which another process that keeps one of the cores busy turns into most of a step. Products in chains, two
threads on two cores: at 1,000, 10,000 and 100,000 turns 10.6, 10.2 and 10.3 s, with one core taken 19.4, 21.4 and
38 s; choosing codes, with both cores free, 25, 13 and 12.4 s."""
STARTUP_SECONDS = 1800.0
ORACLE = "qra_bo.pipeline.build:make_oracle"


def training_device(config: RunConfig) -> str:
    """Return the kind of device, ``"cuda"`` or ``"cpu"``, that trains or that a simulation stands for.

    Raises:
        DeviceError: If a run needs a CUDA device and this machine has none.
    """
    if not config.oracle.trains or (config.executor.elsewhere and config.device != "auto"):
        return planned_device(config.device, config.gpu)  # a simulation stands in for a GPU that is there
    device = "cuda" if resolve_device(config.device).startswith("cuda") else "cpu"
    if config.gpu is not None and device == "cpu" and not config.executor.elsewhere:
        lacks = "torch sees none on this machine" if config.device == "auto" else f"device={config.device} is another"
        raise DeviceError(
            f"gpu={config.gpu} names a card, on which task={config.task} would train: that needs a CUDA device, and "
            f"{lacks}. A card that is not there can be planned for: task=memory gpu={config.gpu}. To train, run this "
            "command on a machine with the card, or leave gpu out and train on the CPU, which suits small models")
    return device


def card_capability(cfg: RunConfig, device_type: str) -> tuple[int, int] | None:
    """Return the compute capability of the card that is named, or else is at hand; ``None`` for a CPU, and where there
    is no card. Loads torch where a GPU has no name."""
    if device_type != "cuda":
        return None
    if cfg.gpu is not None:
        return CARDS[cfg.gpu].capability
    import torch  # a plan for a CPU or a named card does without it
    index = int(cfg.device.partition(":")[2] or 0)
    return torch.cuda.get_device_capability(index) if index < torch.cuda.device_count() else None


def make_memory(cfg: RunConfig, spec: DecoderSpec, device_type: str, allowance: Allowance | None = None) -> MemoryModel:
    """Return the memory model of the configured trainer on a device type (``"cpu"`` or ``"cuda"``).

    ``allowance`` was measured on the device; ``None`` stands for the assumed one of its type.
    """
    compute = BYTES[resolve_dtype(cfg.dtype, device_type)]
    at_hand = planned_device(cfg.device, cfg.gpu) == device_type  # else any recent GPU is priced
    grouped = takes_groups(compute, device_type, card_capability(cfg, device_type) if at_hand else None)
    shape = TrainShape(cfg.train.batch, cfg.train.length, cfg.train.checkpointing, compute, cfg.train.optimizer,
                       logits_chunk=cfg.train.logits_chunk, device=device_type, stored_dtype_bytes=compute,
                       eval_batch=min(cfg.train.batch, cfg.eval.sequences), accumulate=cfg.train.accumulate,
                       isolated=cfg.train.isolated, embeddings=cfg.embeddings, grouped=grouped)
    return MemoryModel(spec, shape, cfg.memory.scope, allowance, CONSUMERS[cfg.serve].matrix_bytes)


def reference_formats(cfg: RunConfig) -> tuple[StorageFormat, ...]:
    """Return the formats of the references that a run trains: 16 bits and NF4 beside a search, QLoRA's NF4 beside a
    predicted allocation, none in other tasks."""
    effort, bits = cfg.effort, tuple[int, ...]()
    if cfg.task == "search" and effort.max_full_trials:
        bits = (16, 4) if effort.references else ()
    elif cfg.task == "search":
        bits = (4,) if QLORA in effort.compare else ()
    return tuple(map(default_format, bits))


def bank_formats(cfg: RunConfig, space: SearchSpace) -> tuple[StorageFormat, ...]:
    """Return the ladder's formats and those of the references, each once."""
    return tuple(dict.fromkeys((*space.formats, *reference_formats(cfg))))


def keeps_dense(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> bool:
    """Return whether a bank on a CPU keeps unpacked weights too: where they take less than a quarter of the RAM."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = min([physical, *(limit for limit, _ in memory_groups())])
    return 2 * spec.linear_numel * len(formats) < allowed // 4


def make_oracle(config: Mapping[str, Any], out: str, threads: int | None = None) -> Oracle:
    """Return the oracle of ``RunConfig.to_dict()`` with checkpoints below ``out``; called in the worker process.

    It trains with ``threads`` threads; ``None`` leaves their number to torch.
    """
    cfg, checkpoints = config_from_dict(config), Path(out) / "checkpoints"
    if cfg.oracle.trains:
        expand_segments()
        import torch  # a simulation does without it; it reads the allocator's settings now

        from qra_bo.pipeline.finetune_oracle import make_finetune  # loads torch
        if threads is not None:
            torch.set_num_threads(threads)
        return make_finetune(cfg, Path(out))
    space = make_space(cfg, make_spec(cfg))
    if isinstance(cfg.oracle, OwnOracleConfig):
        return cast(Oracle, cfg.oracle.make(config=cfg, space=space, folder=Path(out)))
    assert isinstance(cfg.oracle, SyntheticOracleConfig)
    from qra_bo.oracle.synthetic import SyntheticOracle  # loads scipy, which planning memory does without
    return SyntheticOracle(space, seed=cfg.seed, learning_rate=cfg.adapter.lr, noise=cfg.oracle.noise,
                           high_steps=cfg.fidelity.high, tokens_per_step=cfg.train.step_tokens,
                           eval_tokens=cfg.eval.sequences * cfg.train.length,
                           calibration_tokens=cfg.data.calibration * cfg.train.length, record_at=(),
                           checkpoints=checkpoints)


def prepare_worker_environment() -> None:
    """Set the environment of spawned workers; values that the user set are left alone."""
    for name, value in {**MALLOC, "TQDM_DISABLE": "1"}.items():  # its bars would run through the run's own display
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:  # which the number of spins would overrule
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


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
        if settings.name == "local" or settings.address is None:  # else this machine holds no model
            from qra_bo.finetune.models.hub import fetch  # its package loads torch where it is used
            fetch(config.model, bars=config.display != "none")
        prepare_worker_environment()
    if settings.name == "ray":
        memory = None if settings.memory is None else parse_size(settings.memory)
        return RayExecutor(OracleSpec(ORACLE, {**kwargs, "out": str(folder.absolute())}), limits(config),
                           settings.workers, Resources(settings.cpus, settings.gpus, memory), settings.address)
    if not real and settings.workers == 1:
        return InProcessExecutor(make_oracle(**kwargs))
    devices = worker_devices(config) if real else [config.device] * settings.workers
    shares_cpu = real and len(devices) > 1 and devices[0] == "cpu"
    threads = max(1, cores() // len(devices)) if shares_cpu else None
    return LocalExecutor([OracleSpec(ORACLE, {**kwargs, "config": {**kwargs["config"], "device": device},
                                              "threads": threads}) for device in devices], limits(config))


def limits(config: RunConfig) -> Limits:
    """Return how long a worker may take."""
    return Limits(config.worker.deadline_seconds, config.worker.slowdown, STARTUP_SECONDS, config.worker.retries)


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
