"""Alternative text of every figure, with its numbers, for readers who can't see it."""

import numpy as np
import numpy.typing as npt

from qra_bo.report import checks, story
from qra_bo.report.data import BREAKDOWN, ReportData
from qra_bo.report.text import number, short_names, signed, size

NAMED_UNITS = 3
"""How many of the most sensitive units are named."""


def confirmation(d: ReportData) -> str:
    c = d.confirmation
    if c is None:
        return ""
    each = ", ".join(signed(v) for v in c.differences)
    return (f"Differences in {c.split} loss of {d.name(c.candidate)} to {d.name(c.reference)}, by training seed: "
            f"{each} nats. Mean {signed(c.mean)}, 95 % interval {signed(c.low)} to {signed(c.high)}.")


def pareto(d: ReportData) -> str:
    named = [("The winner", d.winner_point), ("The best uniform baseline that fits", d.best_uniform)]
    found = [f"{what}, {d.name(e.allocation)}, lies at {size(e.predicted_bytes)} and loss {number(e.loss)}."
             for what, e in named if e is not None]
    return f"{len(d.points)} allocations; the budget is {size(d.header.budget_bytes)}. {' '.join(found)}"


def allocation(d: ReportData) -> str:
    return f"The winner by unit: {story.allocation_line(d)}."


def sensitivity(d: ReportData) -> str:
    if d.profile is None:
        return ""
    p = d.profile.profile
    names = short_names(p.units)

    def top(values: npt.NDArray[np.float64]) -> str:
        return ", ".join(names[u] for u in np.argsort(-values)[:NAMED_UNITS])

    worst = "; ".join(f"{fmt} at units {top(column)} (up to {signed(float(column.max()))} nats)"
                      for fmt, column in zip(p.formats, p.quantization_sensitivity.T, strict=True))
    rank = "" if p.rank_sensitivity is None else \
        f" Adapter capacity may gain most at units {top(p.rank_sensitivity[:, -1])}."
    return f"Quantising one unit alone raises the loss most with {worst}.{rank}"


def memory(d: ReportData) -> str:
    if d.winner is None or d.breakdown is None:
        return ""
    parts = ", ".join(f"{label} {size(d.breakdown[k])}" for k, label in BREAKDOWN.items() if d.breakdown.get(k))
    m = d.measurement(d.winner)
    measured = "Not measured" if m is None or m.measured_bytes is None else f"{size(m.measured_bytes)} measured"
    return (f"Predicted {size(sum(d.breakdown.values()))}: {parts}. {measured}; the budget is "
            f"{size(d.header.budget_bytes)}.")


def convergence(d: ReportData) -> str:
    best, uniform = d.incumbent, d.best_uniform
    if best is None:
        return ""
    versus = "" if uniform is None else f"; the best uniform baseline that fits has {number(uniform.loss)}"
    return (f"Best validation loss {number(best.loss)}, found by trial {best.id} of {len(d.trials)}{versus}. "
            f"The whole run cost {d.equivalents:.1f} full-trial equivalents.")


def fidelities(d: ReportData) -> str:
    pairs, longer, parts = checks.low_high(d), d.last("ranking_check"), []
    if pairs:
        parts.append(f"{len(pairs)} allocations after {d.header.low_steps} and after {d.header.high_steps} steps; "
                     f"Spearman's correlation {number(checks.rank_correlation(pairs), 2)}.")
    if longer is not None and longer["spearman"] is not None:
        parts.append(f"The {len(longer['losses'])} best after {d.header.high_steps} and after {longer['steps']} steps: "
                     f"Spearman's correlation {number(float(longer['spearman']), 2)}.")
    return " ".join(parts)


def surrogate(d: ReportData) -> str:
    return " ".join(c.text for c in checks.surrogate(d)) or \
        "Each trial as predicted from the others, against its measured loss."
