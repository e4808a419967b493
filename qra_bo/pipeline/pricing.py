"""Memory model, storage formats and budget in bytes of a configuration; the plan of ``task=memory``."""

from pathlib import Path

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory import MemoryModel, Plan, TrainShape, default_format, format_size, memory_plan
from qra_bo.memory.budget import Auto, Budget, Simple, free_bytes, headroom_bytes, resolve_budget, total_bytes
from qra_bo.memory.serving import CONSUMERS
from qra_bo.searchers.rates.model import load_rates, of_training
from qra_bo.sensitivity.profile import typical_profile
from qra_bo.space import Allocation, DecoderSpec, SearchSpace, StorageFormat
from qra_bo.study.baselines import fractional_choices
from qra_bo.study.lines import begun_study
from qra_bo.study.setting import Setting
from qra_bo.utils.device import BYTES, planned_device, resolve_device, resolve_dtype, takes_groups
from qra_bo.utils.errors import BudgetError, DeviceError


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


def worker_cards(config: RunConfig) -> list[int]:
    """Return the numbers of the CUDA devices that workers take, of those that this machine has. Loads torch."""
    import torch  # a plan for a CPU or a named card does without it
    there = range(torch.cuda.device_count())
    if config.executor.name == "ray":  # which places them
        return list(there)
    several = config.executor.workers > 1
    wanted = range(config.executor.workers) if several else [int(config.device.partition(":")[2] or 0)]
    return [index for index in wanted if index in there]


def card_capability(config: RunConfig, device_type: str) -> tuple[int, int] | None:
    """Return the compute capability of the card that is named, or else the least of those that workers take; ``None``
    for a CPU, and where there is no card. Loads torch where a GPU has no name."""
    if device_type != "cuda":
        return None
    if config.card is not None:
        return config.card.capability
    import torch  # a plan for a CPU or a named card does without it
    return min(map(torch.cuda.get_device_capability, worker_cards(config)), default=None)


def with_dtype(config: RunConfig, folder: Path | None = None) -> RunConfig:
    """Return ``config`` with one compute type for all workers where it says ``auto``: the one that a run in ``folder``
    recorded, else one that suits the least of their cards. Losses in different types would not compare.

    Where the workers are on other machines, the device must be named: without, each resolves ``auto`` by itself. Errors
    are those of ``training_device``, and ``JournalError`` if the run's journal can't be read.
    """
    if config.dtype != "auto":
        return config
    study = None if folder is None else begun_study(folder)
    dtype = None if study is None else study.provenance.get("dtype")
    if dtype not in BYTES:
        if not config.oracle.trains or (config.executor.elsewhere and config.device == "auto"):
            return config
        device = training_device(config)
        dtype = resolve_dtype("auto", device, None if config.executor.elsewhere else card_capability(config, device))
    return config.with_changes(dtype=dtype)


def make_memory(cfg: RunConfig, spec: DecoderSpec, device_type: str) -> MemoryModel:
    """Return the memory model of the configured trainer on a device type (``"cpu"`` or ``"cuda"``)."""
    compute = BYTES[resolve_dtype(cfg.dtype, device_type)]
    at_hand = planned_device(cfg.device, cfg.gpu) == device_type  # else any recent GPU is priced
    grouped = takes_groups(compute, device_type, card_capability(cfg, device_type) if at_hand else None)
    shape = TrainShape(cfg.train.batch, cfg.train.length, cfg.train.checkpointing, compute, cfg.train.optimizer,
                       logits_chunk=cfg.train.logits_chunk, device=device_type, accumulate=cfg.train.accumulate,
                       isolated=cfg.train.isolated, embeddings=cfg.embedding_bits, grouped=grouped)
    return MemoryModel(spec, shape, cfg.memory.scope, matrix_bytes=CONSUMERS[cfg.serve].matrix_bytes)


def reference_formats(cfg: RunConfig) -> tuple[StorageFormat, ...]:
    """Return the formats of the references that a run trains: 16 bits and NF4 beside a search, QLoRA's NF4 beside a
    predicted allocation, none in other tasks."""
    if cfg.task != "search" or not cfg.effort.references:  # beside stored codes there are none
        return ()
    return tuple(map(default_format, (16, 4) if cfg.effort.max_full_trials else (4,)))


def bank_formats(cfg: RunConfig, space: SearchSpace) -> tuple[StorageFormat, ...]:
    """Return the ladder's formats and those of the references, each once."""
    return tuple(dict.fromkeys((*space.formats, *reference_formats(cfg))))


def budget_bytes(config: RunConfig, budget: Budget, memory: MemoryModel, space: SearchSpace) -> int:
    """Return the bytes of one budget of ``config``. ``auto`` is what the device has free, of the GPUs of several
    workers the one with the least, or what a named card has, less the headroom.

    Raises:
        BudgetError: If the device can't meet it.
    """
    free, kind = 0, memory.shape.device if config.card is None else "cuda"
    if config.card is not None:
        free = config.card.total_bytes
    elif isinstance(budget, Auto):
        device = "cpu" if kind == "cpu" else resolve_device(config.device)
        several = device == "cuda" and config.oracle.trains and config.executor.name == "local"
        devices = [f"cuda:{i}" for i in range(config.executor.workers)] if several else [device]
        free = min(map(free_bytes, devices))
    return resolve_budget(budget, memory, space, free=free, headroom=headroom_bytes(config.memory.headroom, kind))


def check_card(config: RunConfig, memory: MemoryModel, budget: int) -> None:
    """Refuse a training peak of ``budget`` bytes that the card of ``gpu=`` or this machine's GPUs can't hold: every
    larger trial would run out of memory. Other machines, simulations and budgets of stored bytes are not checked.

    Raises:
        BudgetError: With the budget, the bytes of the smallest card, and what to do.
    """
    here = config.oracle.trains and not config.executor.elsewhere
    if not here or memory.shape.device != "cuda" or memory.scope != "peak":
        return
    cards = [config.card.total_bytes] if config.card is not None else map(total_bytes, worker_cards(config))
    total = min(cards, default=budget)
    if budget > total:
        raise BudgetError(f"a budget of {format_size(budget)} is more than the GPU has, {format_size(total)} in "
                          "all; use budget=auto for what is free, or a smaller size. gpu=NAME plans for another card")


def make_plan(config: RunConfig) -> Plan:
    """Price simple choices, budgets and cards; needs no weights and no GPU.

    Raises:
        BudgetError: If ``budget=auto`` and the device has nothing free, or a budget is above the card of ``gpu=``.
        ModelError: If the model's shapes are not available.
    """
    spec, device = make_spec(config), planned_device(config.device, config.gpu)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device)
    on_card = memory if device == "cuda" else make_memory(config, spec, "cuda")
    budgets = {str(budget): budget_bytes(config, budget, memory, space) for budget in config.budget}
    learned = load_rates(config.surrogate.rates)
    if config.card is not None:
        check_card(config, memory, max(budgets.values()))

    def fractional(memory: MemoryModel, size: int) -> Allocation | None:
        problem = Setting(config, space, memory).problem(size, typical_profile(space), 0.0)
        rates = of_training(learned, problem, problem.high_steps)
        return next(iter(fractional_choices(problem, rates)), None)

    return memory_plan(memory, space, budgets, on_card=on_card, fractional=fractional,
                       card=config.card, headroom=headroom_bytes(config.memory.headroom, "cuda"),
                       most_bits=config.max_average_bits, consumer=CONSUMERS[config.serve],
                       auto=None if config.embeddings != "auto" else
                       [str(budget) for budget in config.budget if not isinstance(budget, Simple)])
