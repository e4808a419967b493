"""Tables of the comparison of methods, from ``table1/table1.json``."""

import math
from collections.abc import Sequence

from bench.pages.blocks import Row, grid, read
from bench.table1.markdown import gap_text, render, versus_text
from qra_bo.memory.budget import format_size
from qra_bo.utils.formatting import MINUS, number

TABLE = "table1/table1"
LIMITS = ("stored 40MB", "stored 54MB", "stored uniform:4,16")
OURS, UNIFORM = ("qra_bo_finer_gptq", "qra_bo_gptq"), ("best_uniform_finer_gptq", "best_uniform_gptq")
"""Rows by preference: those with 5 and 6 bits on the ladder are not in every table."""
SIMPLE = ("best_simple_finer_gptq",)
METHODS = (("LoftQ", ("loftq",)), ("LQ-LoRA", ("lq_lora",)), ("AMQ, then LoRA", ("amq_lora",)),
           ("AutoQRA as published", ("autoqra",)), ("best uniform choice", UNIFORM),
           ("best simple choice", SIMPLE), ("**qra_bo**", OURS))


def within(table: Row, limit: str, methods: Sequence[str]) -> Row | None:
    """Return the row of the first of the methods that has a result within a limit."""
    found = {r["method"]: r for r in table["rows"] if r["limit"] == limit and not r["why"]}
    return next((found[m] for m in methods if m in found), None)


def one(table: Row, limit: str, methods: Sequence[str]) -> Row:
    """Return the same where there must be a row; raises ``KeyError`` else."""
    row = within(table, limit, methods)
    if row is None:
        raise KeyError(f"no row of {', '.join(methods)} within {limit}")
    return row


def where(table: Row, name: str) -> str:
    """Return a limit in words: ``54.0 MB stored``."""
    limit = next(found for found in table["limits"] if found["name"] == name)
    cap = "" if limit["max_average_bits"] is None else f", {limit['max_average_bits']:g} bits on average"
    return f"{format_size(limit['budget_bytes'])} {'at the peak' if limit['scope'] == 'peak' else 'stored'}{cap}"


def cell(row: Row | None) -> str:
    """Return perplexity and loss of a row."""
    return "not run" if row is None else f"{math.exp(row['mean']):.1f} ({number(row['mean'], 3)})"


def overview() -> str:
    """The table on the first screen: methods by memory limit."""
    table = read(TABLE)
    budgets = {limit["name"]: limit for limit in table["limits"]}
    lines = []
    for name, method in (("LoRA on 16 bits", "lora_16"), ("QLoRA", "qlora")):
        row = one(table, "own memory", (method,))
        title = f"{name}, rank {row['avg_rank']:.0f} ({math.exp(row['mean']):.1f} without a limit)"
        fits = [row[f"{limit['scope']}_bytes"] <= limit["budget_bytes"] for limit in map(budgets.__getitem__, LIMITS)]
        lines.append([title, *(cell(row) if ok else "does not fit" for ok in fits)])
    for title, methods in METHODS:
        lines.append([title, *(cell(within(table, name, methods)) for name in LIMITS)])
    best, simple, ours = ([one(table, name, methods) for name in LIMITS] for methods in (UNIFORM, SIMPLE, OURS))
    lines.append(["gap closed, best uniform choice", *map(gap_text, best)])
    lines.append(["gap closed, best simple choice", *map(gap_text, simple)])
    lines.append(["gap closed, **qra_bo**", *map(gap_text, ours)])
    lines += [[f"qra_bo {MINUS} best {kind} choice, nats", *(versus_text(r["same_codes_minus_row"]) for r in others)]
              for kind, others in (("uniform", best), ("simple", simple))]
    return grid(("test perplexity (loss in nats)", *(where(table, name) for name in LIMITS)), lines)


def rows() -> str:
    """All rows, limit by limit, with their notes."""
    return render(read(TABLE)).split("\n", 1)[1]
