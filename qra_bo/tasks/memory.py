"""``task=memory``: will it fit? Uniform choices, what fits the budget and where the bytes go; no weights, no GPU."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from qra_bo.build import make_memory, make_space, make_spec
from qra_bo.config import RunConfig
from qra_bo.memory.budget import (
    check_budget,
    format_size,
    free_bytes,
    largest,
    parse_budget,
    parse_size,
    resolve_budget,
    smallest,
    uniform_bytes,
)
from qra_bo.memory.model import KEYS, MemoryModel
from qra_bo.space import DecoderSpec, Ladder, SearchSpace, StorageFormat, uniform

SHOWN_RANKS = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Plan:
    """Everything that is printed.

    Args:
        spec: The decoder.
        space: Units and ladders.
        memory: The memory model.
        device: ``"cpu"`` or ``"cuda"``: what it was computed for.
        budgets: Bytes of every budget, by its text.
    """

    spec: DecoderSpec
    space: SearchSpace
    memory: MemoryModel
    device: str
    budgets: dict[str, int]


def run(config: RunConfig) -> int:
    """Print the plan; returns 0 where something fits every budget.

    Raises:
        BudgetError: If nothing fits some budget; the plan has been printed by then.
        ModelError: If the model's shapes are not to be had.
    """
    plan = make_plan(config)
    print_memory_plan(plan, Console(soft_wrap=True))
    table = plan.memory.table(plan.space)
    for budget in plan.budgets.values():
        check_budget(budget, table, plan.space)
    return 0


def make_plan(config: RunConfig) -> Plan:
    """Work the plan out.

    Raises:
        BudgetError: If ``budget=auto`` and the device has nothing free.
        ModelError: If the model's shapes are not to be had.
    """
    spec = make_spec(config)
    space, device = make_space(config, spec), planned_device(config)
    memory = make_memory(config, spec, device)
    auto = any(parse_budget(text).auto for text in config.budget)
    free = free_bytes(_real_device(config)) if auto else None
    headroom = parse_size(config.memory.headroom)
    budgets = {text: resolve_budget(text, memory, space, free=free, headroom=headroom) for text in config.budget}
    return Plan(spec, space, memory, device, budgets)


def planned_device(config: RunConfig) -> str:
    """``"cuda"`` or ``"cpu"``; ``device=auto`` is answered without loading torch."""
    if config.device != "auto":
        return config.device.partition(":")[0]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if Path("/proc/driver/nvidia/version").exists() and not hidden else "cpu"


def _real_device(config: RunConfig) -> str:
    """The device that is asked what it has free; it must be there."""
    from qra_bo.device import resolve_device

    return "cpu" if planned_device(config) == "cpu" else resolve_device(config.device)


def largest_rank(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, budget: int) -> int:
    """The largest integer rank that fits with ``fmt`` on every unit; 0 where not even rank 1 does."""
    low, high = 0, min(min(m.out_features, m.in_features) for u in space.units for m in u.linears)
    while low < high:
        middle = (low + high + 1) // 2
        if uniform_bytes(memory, space, fmt, middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def print_memory_plan(plan: Plan, console: Console) -> None:
    """Print uniform choices, the extremes of the space, and the breakdown of the best uniform choice that fits."""
    spec, memory, space = plan.spec, plan.memory, plan.space
    shape = memory.shape
    what = "peak memory of training" if memory.scope == "peak" else "stored bytes"
    numel = spec.linear_numel + spec.other_numel
    console.print(f"{spec.name}: {numel / 1e6:,.0f} M parameters, {space.n_units} units, {what} on {plan.device}, "
                  f"{8 * shape.compute_dtype_bytes}-bit compute, {shape.batch} x {shape.length} tokens"
                  f"{', checkpointing' if shape.checkpointing else ''}", highlight=False)
    _print_uniform(plan, console)
    table = memory.table(space)
    (least, _), (most, _) = smallest(table, space), largest(table, space)
    console.print(f"Allocations of this space need {format_size(least)} to {format_size(most)}.", highlight=False)
    for text, budget in plan.budgets.items():
        ranks = {fmt: largest_rank(memory, space, fmt, budget) for fmt in space.formats}
        fitting = [(fmt, rank) for fmt, rank in ranks.items() if rank]
        named = "" if format_size(budget).replace(".00", "") == text else f" ({text})"
        if not fitting:
            console.print(f"Budget {format_size(budget)}{named}: no uniform choice fits.", highlight=False)
            continue
        fmt, rank = fitting[-1]
        listed = ", ".join(f"{f.name} {r or 'none'}" for f, r in ranks.items())
        console.print(f"Budget {format_size(budget)}{named}: largest uniform rank {listed}. "
                      f"With {fmt.name} at rank {rank} the bytes go to:", highlight=False)
        _print_breakdown(plan, fmt, rank, console)


def _print_uniform(plan: Plan, console: Console) -> None:
    side = min(min(m.out_features, m.in_features) for u in plan.space.units for m in u.linears)
    ranks = [r for r in SHOWN_RANKS if r <= side]
    sizes = {fmt: [uniform_bytes(plan.memory, plan.space, fmt, rank) for rank in ranks] for fmt in plan.space.formats}
    unit, scale, digits = ("GB", 10**9, 2) if max(map(max, sizes.values())) >= 10**9 else ("MB", 10**6, 1)
    tightest = min(plan.budgets.values())
    table = Table(box=box.SIMPLE_HEAD, title=f"The same choice for every unit, in {unit}; * fits "
                  f"{format_size(tightest)}", title_justify="left")
    table.add_column("format", no_wrap=True)
    for name in ("bits", *(f"rank {rank}" for rank in ranks)):
        table.add_column(name, justify="right", no_wrap=True)
    for fmt, row in sizes.items():
        table.add_row(fmt.name, str(fmt.bits), *(f"{b / scale:.{digits}f}{'*' if b <= tightest else ' '}" for b in row))
    console.print(table)


def _print_breakdown(plan: Plan, fmt: StorageFormat, rank: int, console: Console) -> None:
    space = single_space(plan.space, fmt, rank)
    parts = plan.memory.breakdown(space, uniform(space.n_units, fmt.name, rank))
    console.print("  " + ", ".join(f"{key.replace('_', ' ')} {format_size(parts[key])}" for key in KEYS if parts[key]),
                  highlight=False)


def single_space(space: SearchSpace, fmt: StorageFormat, rank: int) -> SearchSpace:
    """The space of one uniform choice."""
    return SearchSpace(space.units, (fmt,), Ladder("ranks", (rank,)))


def plan_lines(config: RunConfig, width: int = 120) -> Sequence[str]:
    """The plan as lines of text, for a run that can't go on for lack of weights."""
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        print_memory_plan(make_plan(config), console)
    return capture.get().splitlines()
