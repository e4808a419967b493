"""The memory plan of a configuration, and its verification against traced training steps."""

from dataclasses import dataclass, replace

from qra_bo.config import RunConfig, hf_config, make_space, make_spec
from qra_bo.memory.budget import free_bytes, parse_budget, parse_size, resolve_budget, smallest
from qra_bo.memory.plan import Plan, memory_plan
from qra_bo.pipeline.build import make_memory
from qra_bo.space import Ladder, uniform
from qra_bo.study.device_allowance import allowance_for
from qra_bo.utils.device import planned_device, resolve_device


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
