"""Tables of the comparison of methods, from ``table1/table1.json`` and its repetitions."""

import math
from collections.abc import Sequence

from bench.headline import LIMITS, OURS, UNIFORM
from bench.pages.blocks import Row, Tables, between, grid, read, source
from bench.table1.markdown import gap_text, render, versus_text
from qra_bo.report.text import size
from qra_bo.utils.numbers import MINUS, number

TABLE, EARLIER = "table1/table1", "table1_earlier/table1"
"""The comparison, and the one of an earlier version's formats of 2 and 3 bits, which has more methods."""
NORMAL, SHORT, RATES = "table1_normal", "table1_short", "table1_rates"
"""Of the earlier version: longer searches, the comparison made again, and other learning rates."""
METHODS = (("LoftQ", ("loftq",)), ("LQ-LoRA", ("lq_lora",)), ("AMQ, then LoRA", ("amq_lora",)),
           ("AutoQRA as published", ("autoqra",)), ("best uniform choice", UNIFORM), ("**qra_bo**", OURS))
CLASSES = (("GPTQ, 5 and 6 bits too", "best_uniform_finer_gptq"), ("GPTQ", "best_uniform_gptq"),
           ("round to nearest", "best_uniform"))
"""Choices of codes and ladder, and the uniform row of each; that row holds the difference to qra_bo with the same."""


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
    return f"{size(limit['budget_bytes'])} {'at the peak' if limit['scope'] == 'peak' else 'stored'}{cap}"


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
    best, ours = ([one(table, name, methods) for name in LIMITS] for methods in (UNIFORM, OURS))
    lines.append(["gap closed, best uniform choice", *map(gap_text, best)])
    lines.append(["gap closed, **qra_bo**", *map(gap_text, ours)])
    lines.append([f"qra_bo {MINUS} best uniform choice, nats",
                  *(versus_text(r["same_codes_minus_row"]) for r in best)])
    return grid(("test perplexity (loss in nats)", *(where(table, name) for name in LIMITS)), lines)


def rows() -> str:
    """All rows, limit by limit, with their notes."""
    return render(read(TABLE)).split("\n", 1)[1]


def earlier_rows() -> str:
    """The same of the earlier version."""
    return render(read(EARLIER)).split("\n", 1)[1]


def normal() -> str:
    """The rows on the finer ladder, from searches of 40 full-trial equivalents."""
    table, quick = read(NORMAL), read(EARLIER)
    lines = []
    for name in (limit["name"] for limit in table["limits"]):
        ours, best, before = one(table, name, OURS), one(table, name, UNIFORM), one(quick, name, OURS)
        lines.append([where(table, name), number(ours["mean"]), number(ours["avg_bits"], 2),
                      number(ours["avg_rank"], 1), gap_text(ours), number(best["mean"]), number(best["avg_bits"], 1),
                      number(best["avg_rank"], 1), gap_text(best), versus_text(best["same_codes_minus_row"]),
                      number(before["mean"])])
    return grid(("within", "qra_bo", "bits", "rank", "gap closed", "best uniform", "bits", "rank", "gap closed",
                 "difference", "qra_bo at 12"), lines) + source(NORMAL)


def again() -> str:
    """The earlier comparison made again from scratch on another machine, beside the published one."""
    table, published = read(SHORT), read(EARLIER)
    lines = []
    for limit in (limit["name"] for limit in table["limits"]):
        for codes, method in CLASSES:
            row, before = (within(t, limit, (method,)) for t in (table, published))
            versus = row and row["same_codes_minus_row"]
            if row is not None and versus is not None:
                lines.append([where(table, limit), codes, number(row["mean"] + versus["mean"]), number(row["mean"]),
                              versus_text(versus), versus_text(before["same_codes_minus_row"] if before else None)])
    return grid(("within", "codes", "qra_bo", "best uniform", "difference", "published difference"),
                lines) + source(SHORT)


def rates() -> str:
    """The difference to the best uniform choice at other learning rates, and the ends of the gap at others."""
    found = read(RATES)
    names = {"lora_16": "LoRA on 16 bits", "qlora": "QLoRA"}
    lines = [[f"qra_bo {MINUS} best uniform choice, {c['limit']}", f"{c['factor']:g}",
              _difference(c["qra_bo_minus_row"])] for c in found["rate_checks"]]
    lines += [[f"{names.get(c['row'], c['row'])} {MINUS} itself at its own rate", f"{c['factor']:g}",
               _difference(c["minus_own"])] for c in found["reference_checks"]]
    head = ("difference of test losses, nats", "times its own rate", "mean (95 % interval)")
    return grid(head, lines) + source(RATES)


def _difference(d: Row) -> str:
    return between(d["mean"], d["low"], d["high"], 4)


TABLES: Tables = {"comparison": overview, "comparison-rows": rows, "comparison-earlier-rows": earlier_rows,
                  "comparison-normal": normal, "comparison-again": again, "comparison-rates": rates}
