"""``task=memory``: will it fit? Uniform choices, what fits the budget and where the bytes go; no weights, no GPU."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from qra_bo.config.schema import RunConfig
from qra_bo.memory.budget import check_budget, free_bytes, parse_budget, parse_size, resolve_budget, smallest
from qra_bo.memory.plan import MemoryPlan, memory_plan
from qra_bo.memory.plan_tables import TraceCheck, render, render_checks
from qra_bo.pipeline.build import hf_config, make_memory, make_space, make_spec
from qra_bo.pipeline.device_allowance import allowance_for
from qra_bo.space import Ladder, uniform
from qra_bo.utils.errors import BudgetError

WIDTH = 120
"""Columns of the plan where there is no terminal to ask."""


def run(config: RunConfig) -> int:
    """Print the plan, as tables or as JSON (``memory.format``); returns 0 where something fits every budget.

    Raises:
        BudgetError: If nothing fits some budget; the plan has been printed by then.
        ModelError: If the model's shapes are not to be had.
    """
    plan = make_plan(config)
    checks = verify(config, plan) if config.memory.verify else None
    if config.memory.format == "json":
        traced = {} if checks is None else {"traced": [asdict(check) for check in checks]}
        print(json.dumps(plan.to_json() | traced, indent=2))
    else:
        console = Console()
        console = console if console.is_terminal else _plain_console()
        console.print(render(plan))
        if checks is not None:
            console.print(render_checks(checks))
    space = make_space(config, plan.memory.spec)
    table, problems = plan.memory.table(space), []
    for answer in plan.budgets:
        try:
            check_budget(answer.size, table, space, plan.memory)
        except BudgetError as error:
            problems.append(str(error))
    if problems:
        raise BudgetError("; ".join(dict.fromkeys(problems)))
    return 0


def make_plan(config: RunConfig) -> MemoryPlan:
    """Work the plan out.

    Raises:
        BudgetError: If ``budget=auto`` and the device has nothing free.
        ModelError: If the model's shapes are not to be had.
    """
    spec, device = make_spec(config), planned_device(config)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device, allowance_for(config, device))
    auto = any(parse_budget(text).auto for text in config.budget)
    free = free_bytes(_real_device(config)) if auto else None
    headroom = parse_size(config.memory.headroom)
    budgets = {text: resolve_budget(text, memory, space, free=free, headroom=headroom) for text in config.budget}
    on_card = memory if device == "cuda" else make_memory(config, spec, "cuda")
    return memory_plan(memory, space, budgets, on_card=on_card)


def verify(config: RunConfig, plan: MemoryPlan) -> list[TraceCheck]:
    """Trace a training step of the least allocation and of every budget's best uniform choice (loads torch).

    Raises:
        OracleError: If the decoder can't be traced.
    """
    from qra_bo.finetune.tracing.trace import StepTracer

    spec, memory = plan.memory.spec, replace(plan.memory, scope="peak")
    space = make_space(config, spec)
    tracer = StepTracer(spec, None if config.model["n_layers"] is not None else hf_config(config),
                        trust_remote_code=bool(config.model["trust_remote_code"]))
    chosen = {"smallest allocation": smallest(memory.table(space), space)[1]}
    for answer in plan.budgets:
        if answer.best is not None:
            chosen[answer.best.what] = uniform(space.n_units, str(answer.best.fmt), int(answer.best.rank or 0))
    checks = []
    for what, allocation in chosen.items():
        single = replace(space, ranks=Ladder("ranks", tuple(sorted(set(allocation.ranks)))))
        traced = tracer.trace(single, allocation, memory.shape)
        predicted = sum(memory.breakdown(single, allocation).values())
        checks.append(TraceCheck(what, predicted, traced.peak, traced.phase, traced.seconds))
    return checks


def planned_device(config: RunConfig) -> str:
    """``"cuda"`` or ``"cpu"``; ``device=auto`` is answered without loading torch."""
    if config.device != "auto":
        return config.device.partition(":")[0]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if Path("/proc/driver/nvidia/version").exists() and not hidden else "cpu"


def _real_device(config: RunConfig) -> str:
    """The device that is asked what it has free; it must be there."""
    from qra_bo.utils.device import resolve_device

    return "cpu" if planned_device(config) == "cpu" else resolve_device(config.device)


def _plain_console() -> Console:
    return Console(width=WIDTH, force_terminal=False, color_system=None)


def plan_lines(config: RunConfig) -> Sequence[str]:
    """The plan as lines of text, for a run that can't go on for lack of weights or memory."""
    console = _plain_console()
    with console.capture() as capture:
        console.print(render(make_plan(config)))
    return [line.rstrip() for line in capture.get().splitlines()]
