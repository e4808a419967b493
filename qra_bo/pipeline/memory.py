"""Memory of a run before it starts: the plan of task=memory, its traced verification, and the RAM of a CPU run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qra_bo.config import RunConfig, hf_config, make_space, make_spec
from qra_bo.memory.budget import format_size, free_bytes, largest, parse_budget, parse_size, resolve_budget, smallest
from qra_bo.memory.formats import default_format, metadata_bytes, parse_format, weight_bytes
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.plan import Plan, memory_plan
from qra_bo.pipeline.build import MALLOC, make_memory
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, StorageFormat, uniform
from qra_bo.study.device_allowance import allowance_for
from qra_bo.utils.device import BYTES, planned_device, resolve_device, resolve_dtype
from qra_bo.utils.errors import DeviceError

LIBRARIES = 450 * 10**6
"""Resident bytes of a worker that has imported torch, transformers, peft, bitsandbytes and hqq (439 MB measured)."""
FACTORS = 5
"""Matrices in fp64 that are alive at once while the second moments of a layer's inputs are factored and inverted."""


@dataclass(frozen=True, slots=True)
class TraceCheck:
    """A prediction beside the peak of a traced training step, in bytes; its phase, and the seconds of tracing."""

    what: str
    predicted_bytes: int
    traced_bytes: int
    phase: str
    seconds: float


def make_plan(config: RunConfig) -> Plan:
    """Price uniform choices, budgets and cards; needs no weights and no GPU.

    Raises:
        BudgetError: If ``budget=auto`` and the device has nothing free.
        ModelError: If the model's shapes are not available.
    """
    spec, device = make_spec(config), planned_device(config.device)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device, allowance_for(config, device))
    auto = any(parse_budget(text).auto for text in config.budget)
    free = free_bytes("cpu" if device == "cpu" else resolve_device(config.device)) if auto else None
    headroom = parse_size(config.memory.headroom)
    budgets = {text: resolve_budget(text, memory, space, free=free, headroom=headroom) for text in config.budget}
    on_card = memory if device == "cuda" else make_memory(config, spec, "cuda")
    return memory_plan(memory, space, budgets, on_card=on_card)


def verify_plan(config: RunConfig, plan: Plan) -> list[TraceCheck]:
    """Trace a training step of the smallest allocation and of every budget's best uniform choice (loads torch).

    Raises:
        OracleError: If the decoder can't be traced.
    """
    from qra_bo.finetune.tracing.trace import StepTracer  # torch stays unloaded in a plan that is not verified

    spec, memory = plan.memory.spec, replace(plan.memory, scope="peak")
    space = make_space(config, spec)
    tracer = StepTracer(spec, None if config.model["n_layers"] is not None else hf_config(config),
                        trust_remote_code=bool(config.model["trust_remote_code"]))
    chosen = {"smallest allocation": smallest(memory.table(space), space)[1]}
    chosen |= {best.what: uniform(space.n_units, str(best.fmt), int(best.rank or 0))
               for best in (answer.best for answer in plan.budgets) if best is not None}
    checks = []
    for what, allocation in chosen.items():
        single = replace(space, ranks=Ladder("ranks", tuple(sorted(set(allocation.ranks)))))
        traced = tracer.trace(single, allocation, memory.shape)
        predicted = sum(memory.breakdown(single, allocation).values())
        checks.append(TraceCheck(what, predicted, traced.peak, traced.phase, traced.seconds))
    return checks


def host_parts(config: RunConfig, spec: DecoderSpec, space: SearchSpace) -> Mapping[str, int]:
    """Return the RAM that ``oracle=finetune`` on a CPU needs beyond what is in use now, in bytes by purpose.

    On a CPU an installed layer is the bank's own, so that training adds only what is neither weight nor metadata.
    """
    item, formats = BYTES[resolve_dtype(config.dtype, "cpu")], bank_formats(space)
    shared = ("fp16",) if item == 2 else ()  # 16 bits of a base that has 16 are the base itself
    packed = sum(weight_bytes(fmt, m.out_features, m.in_features) + metadata_bytes(fmt, m.out_features, m.in_features)
                 for fmt in formats if fmt.name not in shared for m in spec.linears)
    quantised = sum(fmt.bits < 16 for fmt in formats)
    width = max(linear.in_features for linear in spec.linears)
    choosing = 0 if config.quantizer.rounding == "rtn" else \
        FACTORS * 8 * width**2 + item * config.quantizer.tokens * (4 * spec.hidden_size + 3 * width)
    return {"dense weights": item * (spec.linear_numel + spec.other_numel), "packed formats": packed,
            "unpacked copies": item * spec.linear_numel * quantised if keeps_dense(spec, formats) else 0,
            "training or choosing codes": max(_training(config, make_memory(config, spec, "cpu"), space), choosing),
            "libraries": LIBRARIES, "allocator": int(MALLOC["MALLOC_TOP_PAD_"])}


def _training(config: RunConfig, memory: MemoryModel, space: SearchSpace) -> int:
    """Return the bytes of adapters, states, activations and workspace of the most demanding trained allocation."""
    peak = MemoryModel(memory.spec, memory.shape)
    table = peak.table(space)
    if memory.scope == "peak":
        auto = any(parse_budget(text).auto for text in config.budget)
        budget = max(resolve_budget(text, memory, space, headroom=parse_size(config.memory.headroom),
                                    free=free_bytes("cpu") if auto else None) for text in config.budget)
        _, least = smallest(table, space)
        needs = [budget - _held(peak, space, least)]
    else:
        total, most = largest(table, space)
        needs = [total - _held(peak, space, most)]
    if config.effort.references:
        for fmt in (default_format(16), default_format(4)):
            single = SearchSpace(space.units, (fmt,), Ladder("ranks", (16,)))
            allocation = uniform(space.n_units, fmt.name, 16)
            total = sum(peak.breakdown(single, allocation).values())
            needs.append(total - _held(peak, single, allocation))
    return max(0, *needs)


def _held(peak: MemoryModel, space: SearchSpace, allocation: Allocation) -> int:
    """Return the bytes of an allocation's peak that the base and the bank hold anyway."""
    parts = peak.breakdown(space, allocation)
    return parts["weights"] + parts["quant_metadata"] + parts["unquantised"]


def check_ram(config: RunConfig, spec: DecoderSpec, space: SearchSpace) -> None:
    """Refuse a run that needs more RAM than is available.

    Raises:
        DeviceError: With the bytes needed by purpose, and the bytes available.
    """
    if not Path("/proc/meminfo").exists():
        return  # the available bytes are known on Linux alone
    parts, available, workers = host_parts(config, spec, space), free_bytes("cpu"), config.executor.workers
    need = workers * sum(parts.values())
    listed = ", ".join(f"{what} {format_size(size)}" for what, size in parts.items() if size)
    listed += f"; for each of {workers} workers" if workers > 1 else ""
    if need > available:
        raise DeviceError(
            f"fine-tuning {config.model_name} on a CPU needs about {format_size(need)} of RAM ({listed}) and "
            f"{format_size(available)} is available; name fewer bits (each format is packed once), lower train.batch "
            "or train.length, take a smaller model, a GPU (device=cuda), a machine with more RAM, or oracle=synthetic")


def bank_formats(space: SearchSpace) -> tuple[StorageFormat, ...]:
    """Return the ladder's formats and those of the references (NF4 and 16 bits), each once."""
    names = dict.fromkeys([*(f.name for f in space.formats), "nf4", "fp16"])
    return tuple(parse_format(name) for name in names)


def keeps_dense(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> bool:
    """Return whether a bank on a CPU keeps unpacked weights too: where they take less than a quarter of the RAM."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * spec.linear_numel * len(formats) < physical // 4
