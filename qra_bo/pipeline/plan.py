"""What a run needs, before it starts: the plan of task=memory and its check by tracing, RAM, cost and time."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qra_bo.config import RunConfig, hf_config, make_space, make_spec, named_specs, plan_device
from qra_bo.finetune.data.jsonl import read_records
from qra_bo.finetune.data.load import tiny_records
from qra_bo.finetune.data.plays import play_records
from qra_bo.finetune.training.final import FinalSettings
from qra_bo.memory import MemoryModel, Plan, default_format, format_size, memory_plan, parse_budget, parse_size
from qra_bo.memory.budget import free_bytes, headroom_bytes, largest, resolve_budget, smallest
from qra_bo.memory.cards import CARDS, Card
from qra_bo.memory.embeddings import packed_tables_bytes, unpacked_numel
from qra_bo.memory.formats import metadata_bytes, weight_bytes
from qra_bo.memory.verdict import largest_rank
from qra_bo.pipeline.build import MALLOC, bank_formats, keeps_dense, make_memory
from qra_bo.pipeline.estimate import PROFILE, profile_cost, profile_seconds, token_seconds
from qra_bo.report.opening import Need
from qra_bo.report.tables import PlanRow
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, uniform
from qra_bo.study.comparison import QLORA, UNIFORM
from qra_bo.study.device_allowance import allowance_for
from qra_bo.study.setting import FINAL, Setting, affordable_steps
from qra_bo.utils.device import BYTES, resolve_device, resolve_dtype
from qra_bo.utils.errors import DataError, DeviceError, SpaceError

USUAL_BITS = (2, 3, 4, 8)
"""Widths that a run begins with the needs of, whether it may use them or not."""
CHARACTERS_PER_TOKEN = 3.2
"""Of the embedded text under SmolLM2's tokenizer: 3.98 million characters, 1.24 million tokens."""
LIBRARIES = 450 * 10**6
"""Resident bytes of a worker that has imported torch, transformers, peft, bitsandbytes and hqq (439 MB measured)."""
CUDA_LIBRARIES = 3 * 10**9
"""Assumed resident bytes of a worker with those and a CUDA context, and of its buffers: not measured on a GPU."""
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
    spec, device = make_spec(config), plan_device(config)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device, allowance_for(config, device))
    on_card = memory if device == "cuda" else make_memory(config, spec, "cuda")
    return memory_plan(memory, space, budgets_of(config, memory, space), on_card=on_card,
                       card=None if config.gpu is None else CARDS[config.gpu], most_bits=config.max_average_bits,
                       larger=named_specs)


def budgets_of(config: RunConfig, memory: MemoryModel, space: SearchSpace) -> dict[str, int]:
    """Return the bytes of every budget; ``auto`` is what the device has free, or a named card has, less the headroom.

    Raises:
        BudgetError: If the device can't meet one.
    """
    free, kind = None, memory.shape.device if config.gpu is None else "cuda"
    if config.gpu is not None:
        free = CARDS[config.gpu].total_bytes
    elif any(parse_budget(text).auto for text in config.budget):
        free = free_bytes("cpu" if kind == "cpu" else resolve_device(config.device))
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
    """Return the bytes of every linear packed in every format of the bank, without formats that are the base itself."""
    in_half = BYTES[resolve_dtype(config.dtype, device_type)] == 2 or is_mapped(config)
    return sum(weight_bytes(fmt, m.out_features, m.in_features) + metadata_bytes(fmt, m.out_features, m.in_features)
               for fmt in bank_formats(space) if not (in_half and fmt.name == "fp16") for m in spec.linears)


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
    on_cpu, item, formats = device_type == "cpu", BYTES[resolve_dtype(config.dtype, device_type)], bank_formats(space)
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
    if memory.scope == "peak":
        needs = [max(budgets_of(config, memory, space).values()) - beside(space, smallest(table, space)[1])]
    else:
        total, most = largest(table, space)
        needs = [total - beside(space, most)]
    if config.effort.references:
        for fmt in (default_format(16), default_format(4)):
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


def plan_rows(setting: Setting, card: Card | None = None) -> list[PlanRow]:
    """Return the parts of a run by cost, and by rough time where a CPU or a known ``card`` trains."""
    config, each, seconds = setting.config, setting.full_trial_tokens, token_seconds(setting, card)
    effort, seeds, factor = config.effort, config.confirm.seeds, config.confirm.ranking_factor
    steps = confirmation_steps(setting)
    longer = each + (steps - config.fidelity.high) * config.train.step_tokens
    costs = {"profile, calibration, uniform baselines and search": setting.planned_cost,
             "references (2)": 2 * effort.references * each,
             f"confirmation ({seeds} seeds, 2 allocations, {steps} steps)": 2 * seeds * longer,
             f"the same at {len(effort.rate_factors)} other learning rates":
                 2 * seeds * len(effort.rate_factors) * longer,
             f"ranking check ({effort.ranking_top} allocations, {factor} times as long)":
                 effort.ranking_top * factor * each}
    if setting.given is not None or not effort.max_full_trials:
        costs = {}
    profile: list[PlanRow] = []
    if setting.given is None and not effort.max_full_trials:
        if config.oracle.trains and setting.profile is None:
            profile.append(PlanRow(PROFILE, cost := profile_cost(setting), profile_seconds(setting, cost, seconds)))
        trained = 1 + len({UNIFORM, QLORA} & set(effort.compare))
        costs[f"comparison on one seed ({trained} allocations)"] = trained * each if effort.compare else 0.0
    if config.oracle.trains:
        (what, cost), = _final(config).items()
        share = f"; {100 * cost / (cost + sum(costs.values())):.0f} % of the whole" if cost and costs else ""
        costs[f"final fine-tune ({what}{share})"] = cost
    return [*profile, *(PlanRow(what, cost, None if seconds is None or not cost else seconds * cost)
                        for what, cost in costs.items() if cost or what.startswith("final"))]


def confirmation_steps(setting: Setting) -> int:
    """Return the steps of the confirmation's trainings, see ``Study.confirmation_steps``; where the final fine-tune's
    length is not known yet, those that the effort affords."""
    config, trial = setting.config, setting.config.fidelity.high
    if config.search.length != FINAL or not config.oracle.trains:
        return trial
    afforded = affordable_steps(setting.planned_cost, config.confirm.seeds, config.train.step_tokens, trial)
    wanted = final_steps(config)
    return afforded if wanted is None else min(max(trial, wanted), afforded)


def needs_of(setting: Setting, budget: int) -> list[Need]:
    """Return what the formats of the space need on all units, and the largest rank that fits ``budget`` bytes; of
    ``USUAL_BITS`` too, where any format may be stored and the model's shapes allow it."""
    space, low, needs = setting.space, setting.space.ranks.values[0], list[Need]()
    usual = [default_format(bits) for bits in USUAL_BITS if bits not in setting.config.bits]
    for fmt in sorted([*space.formats, *(usual if setting.config.serve == "any" else ())], key=lambda fmt: fmt.bits):
        with suppress(SpaceError):
            needs.append(Need(fmt.name, fmt.bits, low, setting.predictor(uniform(space.n_units, fmt.name, low)),
                              largest_rank(setting.memory, space, fmt, budget), fmt in space.formats))
    return needs


def final_steps(config: RunConfig) -> int | None:
    """Return the rough steps of the final fine-tune; ``None`` where its tokens are not known yet."""
    final, tokens = FinalSettings(**config.final.model_dump()), 0.0
    if final.steps is None:
        counted = training_tokens(config)
        if counted is None:
            return None
        tokens = counted
    return final.length(tokens / config.train.length, config.train.step_sequences)


def _final(config: RunConfig) -> dict[str, float]:
    """Return the length of the final fine-tune in words and its cost, validations counted; 0.0 where its tokens are not
    known yet."""
    final, step_tokens = FinalSettings(**config.final.model_dump()), config.train.step_tokens
    tokens = None if final.steps is not None else training_tokens(config)
    epochs = f"{final.epochs:g} epoch{'' if final.epochs == 1 else 's'}"
    if final.steps is None and tokens is None:
        limit = "" if final.max_steps is None else f", at most {final.max_steps:,} steps"
        return {f"{epochs}{limit}; its tokens are known once the data is read": 0.0}
    steps = final.length((tokens or 0.0) / config.train.length, config.train.step_sequences)
    if tokens is None:
        what = f"{steps:,} steps"
    elif steps == final.max_steps:
        what = f"{steps:,} steps, the most by final.max_steps: about {steps * step_tokens / tokens:.2f} epochs"
    else:
        what = f"{epochs}: about {steps:,} steps"
    validated = len(final.validations(steps)) * config.eval.sequences * config.train.length / 3
    return {what: steps * step_tokens + validated}


def training_tokens(config: RunConfig) -> float | None:
    """Return the rough tokens of the training split from its characters; ``None`` where it would have to be fetched."""
    data, share = config.data, 1.0 if config.data.kind == "plays" else 1 - 2 * config.data.held_out
    try:
        match data.kind:
            case "plays":
                characters = sum(r.characters for r in play_records()[0])
            case "jsonl":
                characters = sum(r.characters for r in read_records(data.path, data.max_records))
            case "tiny":
                characters = sum(r.characters for r in tiny_records(data.max_records or 512, 0))
            case _:
                return None
    except DataError:  # the run reports it in its own order, after problems with the weights
        return None
    return math.ceil(share * characters / (1.0 if config.model["source"] == "random" else CHARACTERS_PER_TOKEN))
