"""What a run needs, before it starts: the plan of task=memory and its check by tracing, and RAM."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qra_bo.config import RunConfig, hf_config, make_space, make_spec, named_specs
from qra_bo.memory import MemoryModel, Plan, default_format, format_size, memory_plan, parse_budget, parse_size
from qra_bo.memory.advice import largest_rank
from qra_bo.memory.budget import free_bytes, headroom_bytes, largest, resolve_budget, smallest, total_bytes
from qra_bo.memory.cards import CARDS
from qra_bo.memory.embeddings import packed_tables_bytes, unpacked_numel
from qra_bo.memory.formats import metadata_bytes, weight_bytes
from qra_bo.memory.serving import CONSUMERS
from qra_bo.pipeline.build import MALLOC, bank_formats, keeps_dense, make_memory, reference_formats
from qra_bo.report.opening import Need
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, uniform
from qra_bo.study.device_allowance import allowance_for
from qra_bo.study.setting import Setting
from qra_bo.utils.device import BYTES, planned_device, resolve_device, resolve_dtype
from qra_bo.utils.errors import BudgetError, DeviceError, SpaceError

USUAL_BITS = (2, 3, 4, 8)
"""Widths that a run begins with the needs of, whether it may use them or not."""
LIBRARIES = 450 * 10**6
"""Resident bytes of a worker that has imported torch, transformers, peft, bitsandbytes and hqq (439 MB measured)."""
CUDA_LIBRARIES = 3 * 10**9
"""Assumed resident bytes of a worker with those and a CUDA context, and of its buffers: not measured on a GPU."""
FACTORS = 3
"""Matrices in fp64 that are alive at once while the second moments of a layer's inputs are factored and inverted: 2.0
were measured, beside the moments in fp32."""


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
    spec, device = make_spec(config), planned_device(config.device, config.gpu)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device, allowance_for(config, device))
    on_card = memory if device == "cuda" else make_memory(config, spec, "cuda")
    return memory_plan(memory, space, budgets_of(config, memory, space), on_card=on_card,
                       card=None if config.gpu is None else CARDS[config.gpu],
                       headroom=headroom_bytes(config.memory.headroom, "cuda"), most_bits=config.max_average_bits,
                       consumer=CONSUMERS[config.serve], larger=named_specs)


def budgets_of(config: RunConfig, memory: MemoryModel, space: SearchSpace) -> dict[str, int]:
    """Return the bytes of every budget; ``auto`` is what the device has free, of the GPUs of several workers the one
    with the least, or what a named card has, less the headroom.

    Raises:
        BudgetError: If the device can't meet one.
    """
    free, kind = None, memory.shape.device if config.gpu is None else "cuda"
    if config.gpu is not None:
        free = CARDS[config.gpu].total_bytes
    elif any(parse_budget(text).auto for text in config.budget):
        device = "cpu" if kind == "cpu" else resolve_device(config.device)
        several = device == "cuda" and config.oracle.trains and config.executor.name == "local"
        devices = [f"cuda:{i}" for i in range(config.executor.workers)] if several else [device]
        free = min(map(free_bytes, devices))
    headroom = headroom_bytes(config.memory.headroom, kind)
    return {text: resolve_budget(text, memory, space, free=free, headroom=headroom) for text in config.budget}


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


def packed_bytes(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str) -> int:
    """Return the bytes of every linear packed in every format that the bank keeps.

    It keeps no 16 bits, but layers on a CPU that are not the base itself.
    """
    in_half = BYTES[resolve_dtype(config.dtype, device_type)] == 2 or is_mapped(config)
    keeps_half = device_type == "cpu" and not in_half
    return sum(weight_bytes(fmt, m.out_features, m.in_features) + metadata_bytes(fmt, m.out_features, m.in_features)
               for fmt in bank_formats(config, space) if fmt.bits < 16 or keeps_half for m in spec.linears)


def is_mapped(config: RunConfig) -> bool:
    """Whether the base's weights of 16 bits are mapped from safetensors and take no memory of a worker's own."""
    return config.model["source"] in ("hub", "path") and config.model["gguf_file"] is None


def spills(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str) -> bool:
    """Whether packed layers go to disk: those of all workers take more than ``worker.spill_above``.

    Raises:
        BudgetError: If that is ``auto`` and this machine does not say what memory is free.
    """
    given = config.worker.spill_above
    limit = free_bytes("cpu") // 2 if given == "auto" else parse_size(given)
    return config.executor.workers * packed_bytes(config, spec, space, device_type) > limit


def host_parts(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str = "cpu") -> Mapping[str, int]:
    """Return the RAM that a worker of ``oracle=finetune`` needs beyond what is in use now, in bytes by purpose.

    Files that are mapped are left out: the system reads them again where memory lacks. On a CPU an installed layer is
    the bank's own, so that training adds only what is neither weight nor metadata, unless the bank is on disk.
    """
    on_cpu, item = device_type == "cpu", BYTES[resolve_dtype(config.dtype, device_type)]
    formats = bank_formats(config, space)
    spilled = spills(config, spec, space, device_type)
    quantised = sum(fmt.bits < 16 for fmt in formats)
    tables = spec.other_numel - unpacked_numel(spec, config.embeddings)
    width = max(linear.in_features for linear in spec.linears)
    choosing = 0 if config.quantizer.rounding == "rtn" else \
        FACTORS * 8 * width**2 + on_cpu * item * config.quantizer.tokens * (4 * spec.hidden_size + 3 * width)
    training = _training(config, make_memory(config, spec, "cpu"), space, spilled) if on_cpu else 0
    cast = spec.other_numel if item == 4 else 0  # what no quantiser packs is cast to the compute type
    return {"dense weights": item * (cast if is_mapped(config) else spec.linear_numel + spec.other_numel),
            "packed formats": 0 if spilled else packed_bytes(config, spec, space, device_type),
            "packed embeddings": packed_tables_bytes(spec, config.embeddings) if on_cpu else 0,
            "unpacked copies": item * (spec.linear_numel * quantised + tables)
            if on_cpu and keeps_dense(spec, formats) else 0,
            "training or choosing codes": max(training, choosing),
            "libraries": LIBRARIES if on_cpu else CUDA_LIBRARIES,
            "allocator": int(MALLOC["MALLOC_TOP_PAD_"])}


def _training(config: RunConfig, memory: MemoryModel, space: SearchSpace, spilled: bool) -> int:
    """Return the bytes of adapters, states, activations and workspace of the most demanding trained allocation.

    With packed layers on disk (``spilled``) its weights count too: a step that reads them from there takes too long.
    """
    peak = MemoryModel(memory.spec, memory.shape)

    def beside(space: SearchSpace, allocation: Allocation) -> int:
        parts = peak.breakdown(space, allocation)
        return 0 if spilled else sum(parts[key] for key in ("weights", "quant_metadata", "unquantised", "embeddings"))

    table = peak.table(space)
    total, most = largest(table, space)
    needs = [total - beside(space, most)]
    if memory.scope == "peak":  # the budget may lie above all allocations: auto is what is free
        within = max(budgets_of(config, memory, space).values()) - beside(space, smallest(table, space)[1])
        needs = [min(within, *needs)]
    for fmt in reference_formats(config):
        single = SearchSpace(space.units, (fmt,), Ladder("ranks", (16,)))
        allocation = uniform(space.n_units, fmt.name, 16)
        total = sum(peak.breakdown(single, allocation).values())
        needs.append(total - beside(single, allocation))
    return max(0, *needs)


def check_ram(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str = "cpu") -> None:
    """Refuse a run whose workers need more RAM than is available.

    Raises:
        DeviceError: With the bytes needed by purpose, and the bytes available.
    """
    if not Path("/proc/meminfo").exists():
        return  # the available bytes are known on Linux alone
    available, workers = free_bytes("cpu"), config.executor.workers
    parts = host_parts(config, spec, space, device_type)
    need = workers * sum(parts.values())
    listed = ", ".join(f"{what} {format_size(size)}" for what, size in parts.items() if size)
    listed += f"; for each of {workers} workers" if workers > 1 else ""
    where, advice = ("a CPU", "lower train.batch or train.length, take a smaller model, a GPU (device=cuda)") \
        if device_type == "cpu" else ("a GPU", "take a smaller model")
    if need > available:
        raise DeviceError(
            f"fine-tuning {config.model_name} on {where} needs about {format_size(need)} of RAM ({listed}) and "
            f"{format_size(available)} is available; name fewer bits (each format is packed once) or fewer "
            f"executor.workers, keep packed layers on disk (worker.spill_above=1MB), {advice}, a machine with more "
            "RAM, or oracle=synthetic")


def check_card(config: RunConfig, memory: MemoryModel, budget: int) -> None:
    """Refuse a training peak of ``budget`` bytes that the GPUs of this machine can't hold: every larger trial would run
    out of memory. Other machines, simulations, ``gpu=`` and budgets of stored bytes are not checked.

    Raises:
        BudgetError: With the budget, the bytes of the smallest card, and what to do.
    """
    here = config.oracle.trains and not config.executor.elsewhere and config.gpu is None
    if not here or memory.shape.device != "cuda" or memory.scope != "peak":
        return
    workers = config.executor.workers
    indices = range(workers) if workers > 1 else [int(config.device.partition(":")[2] or 0)]
    totals = [total for total in map(total_bytes, indices) if total is not None]
    if totals and budget > min(totals):
        raise BudgetError(f"a budget of {format_size(budget)} is more than the GPU has, {format_size(min(totals))} in "
                          "all; use budget=auto for what is free, or a smaller size. task=memory gpu=NAME plans for "
                          "another card")


def needs_of(setting: Setting, budget: int) -> list[Need]:
    """Return what the formats of the space need on all units, and the largest rank that fits ``budget`` bytes; of
    ``USUAL_BITS`` too, where any format may be stored and the model's shapes allow it."""
    space, needs = setting.space, list[Need]()
    usual = [default_format(bits) for bits in USUAL_BITS if bits not in setting.config.bits]
    for fmt in sorted([*space.formats, *(usual if setting.config.serve == "any" else ())], key=lambda fmt: fmt.bits):
        with suppress(SpaceError):
            needs.append(Need(fmt.name, fmt.bits, setting.predictor(uniform(space.n_units, fmt.name, 1)),
                              largest_rank(setting.memory, space, fmt, budget), fmt in space.formats))
    return needs
