"""What each figure shows, in numbers: for readers who can't see it."""

from collections.abc import Callable, Sequence

import numpy as np

from qra_bo.report import story
from qra_bo.report.data import BREAKDOWN_KEYS, ReportData
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.text import describe_allocation, number, short_names, signed, size

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
    winner = None if d.winner is None else d.point(d.winner)
    named = [("The winner", winner), ("The best uniform choice that fits", d.best_uniform)]
    told = [f"{what}, {d.name(e.allocation)}, lies at {size(e.predicted_bytes)} and loss {number(e.loss)}."
            for what, e in named if e is not None]
    return f"{len(d.points)} allocations; the budget is {size(d.header.budget_bytes)}. {' '.join(told)}"


def allocation(d: ReportData) -> str:
    w = d.winner
    return "" if w is None else f"The winner by unit: {describe_allocation(d.header.units, d.bits(w), w.ranks)}."


def sensitivity(d: ReportData) -> str:
    p = d.profile
    if p is None:
        return ""
    names = short_names(p.units)
    worst = [f"{fmt} at units {', '.join(names[u] for u in np.argsort(-p.quantization_sensitivity[:, j])[:NAMED_UNITS])} (up to "
             f"{signed(float(p.quantization_sensitivity[:, j].max()))} nats)" for j, fmt in enumerate(p.formats)]
    gain = "" if p.rank_sensitivity is None else " Adapter capacity may gain most at units " + \
        ", ".join(names[u] for u in np.argsort(-p.rank_sensitivity[:, -1])[:NAMED_UNITS]) + "."
    return f"Quantising one unit alone harms most with {'; '.join(worst)}.{gain}"


def memory(d: ReportData) -> str:
    if d.winner is None or d.breakdown is None:
        return ""
    parts = ", ".join(f"{k.replace('_', ' ')} {size(d.breakdown[k])}" for k in BREAKDOWN_KEYS if d.breakdown.get(k))
    m = d.measurement(d.winner)
    measured = "not measured" if m is None or m.measured_bytes is None else f"{size(m.measured_bytes)} measured"
    return (f"Predicted {size(sum(d.breakdown.values()))}: {parts}. {measured.capitalize()}; the budget is "
            f"{size(d.header.budget_bytes)}.")


def convergence(d: ReportData) -> str:
    best, uniform = d.incumbent, d.best_uniform
    if best is None:
        return ""
    versus = "" if uniform is None else f"; the best uniform choice that fits has {number(uniform.loss)}"
    return (f"Best validation loss {number(best.loss)}, found by evaluation {best.id} of {len(d.trials)}{versus}. "
            f"All of it cost {d.equivalents:.1f} high-fidelity evaluations.")


def fidelities(d: ReportData) -> str:
    pairs, parts = story.low_high(d), []
    if pairs:
        rho = story.rank_correlation([low for low, _ in pairs], [e.loss or 0.0 for _, e in pairs])
        parts.append(f"{len(pairs)} allocations after {d.header.low_steps} and after {d.header.high_steps} steps; "
                     f"Spearman's correlation {number(rho, 2)}.")
    longer = d.ranking_check
    if longer is not None and longer["spearman"] is not None:
        parts.append(f"The {len(longer['losses'])} best after {d.header.high_steps} and after {longer['steps']} steps: "
                     f"Spearman's correlation {number(float(longer['spearman']), 2)}.")
    return " ".join(parts)


def surrogate(d: ReportData) -> str:
    return " ".join(c.text for c in story.checks(d) if c.title == "Surrogate") or \
        "Each evaluation as predicted from the others, against what was measured."


def of_runs(shown: Callable[[ReportData], str]) -> Callable[[Sequence[NamedRun]], str]:
    """The same of several runs, each under its name."""
    def each(runs: Sequence[NamedRun]) -> str:
        return " ".join(f"{run.name}: {shown(run.data)}" for run in runs)

    return each
