"""Figure and table of README, from committed results: perplexity of QLoRA, uniform bits and ours within a memory limit.

    python -m bench.headline            (writes docs/figures/perplexity.png, prints the table)

Rows are of the comparison (``bench/results/table1/table1.json``), one of a single search (``RUN``), and one of the
study of longer training (``LONGER``). The best uniform choice has the same formats to choose from and the same codes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.report import RESULTS
from qra_bo.report.style import BLUE, LIGHT, MB, PURPLE, VERMILLION, axes, dress, png_bytes
from qra_bo.report.text import size
from qra_bo.utils.numbers import signed

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "perplexity.png"
RUN = "runs/first_run_finer.json"
LONGER, LONGER_LIMIT, LONGER_STEPS = "length/length.json", "54 MB stored", 240
SHORT_STEPS = 24
"""Optimiser steps of all other rows."""
LIMITS = ("peak uniform:4,4", "peak uniform:4,16", "stored uniform:4,16")
OURS, UNIFORM = ("qra_bo_finer_gptq", "qra_bo_gptq"), ("best_uniform_finer_gptq", "best_uniform_gptq")
"""Rows by preference: those with 5 and 6 bits on the ladder are not in the comparison within every limit."""
HEADINGS = ("memory limit", "QLoRA", "best uniform choice", "qra_bo", "difference, nats (95 % interval)")


@dataclass(frozen=True, slots=True)
class Row:
    """Test losses (nats) within one limit; ``qlora`` is ``None`` where QLoRA does not fit. ``difference`` is ours less
    the best uniform choice's, with the ends of its 95 % interval."""

    scope: str
    limit_bytes: int
    qlora: float | None
    uniform: float
    ours: float
    difference: tuple[float, float, float]
    steps: int = SHORT_STEPS

    @property
    def cells(self) -> tuple[str, ...]:
        mean, low, high = map(signed, self.difference)
        where = f"{size(self.limit_bytes)} {'at the peak of training' if self.scope == 'peak' else 'stored'}"
        if self.steps != SHORT_STEPS:
            where += f", {self.steps} steps"
        return (where, "does not fit" if self.qlora is None else _perplexity(self.qlora), _perplexity(self.uniform),
                _perplexity(self.ours), f"{mean} ({low} to {high})")


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.1f}"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def read_rows() -> tuple[list[Row], Mapping[str, Any], Mapping[str, Any]]:
    """Return the rows, peak limits first and by size, and the comparison's rows of QLoRA and of LoRA on 16 bits."""
    table, run = _read("table1/table1.json"), _read(RUN)
    by_name = {(r["limit"], r["method"]): r for r in table["rows"]}
    qlora, lora = (by_name["own memory", method] for method in ("qlora", "lora_16"))
    versus = run["versus_best_uniform"]
    rows = [Row("peak", run["memory"]["budget_bytes"], None, run["loss"] - versus["mean"], run["loss"],
                (versus["mean"], versus["low"], versus["high"]))]
    limits = {limit["name"]: limit for limit in table["limits"]}
    for name in LIMITS:
        scope, budget = limits[name]["scope"], limits[name]["budget_bytes"]
        ours, uniform = (next(by_name[name, m] for m in methods if (name, m) in by_name) for methods in (OURS, UNIFORM))
        d = uniform["same_codes_minus_row"]
        rows.append(Row(scope, budget, qlora["mean"] if qlora[f"{scope}_bytes"] <= budget else None, uniform["mean"],
                        ours["mean"], (d["mean"], d["low"], d["high"])))
    return sorted([*rows, _longer()], key=lambda r: (r.scope, r.limit_bytes, r.steps)), qlora, lora


def _longer() -> Row:
    """Return the row of the longest training: the mixed allocation that a search predicts, over unseen seeds."""
    rows = {r["kind"]: r for r in _read(LONGER)["rows"]
            if (r["task"], r["limit"], r["steps"]) == ("plays", LONGER_LIMIT, LONGER_STEPS)}
    d = rows["find"]["minus_best_uniform"]
    return Row("stored", 54 * 10**6, None, rows["uniform"]["mean"], rows["find"]["mean"],
               (d["mean"], d["low"], d["high"]), LONGER_STEPS)


def markdown() -> str:
    """Return the table as README has it."""
    rows, _, _ = read_rows()
    lines = (HEADINGS, ["---"] * len(HEADINGS), *(r.cells for r in rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw() -> Figure:
    """Draw perplexity against the peak memory of training."""
    rows, qlora, lora = read_rows()
    peak = [r for r in rows if r.scope == "peak"]
    fig, ax = axes(LIGHT, 8.0, 4.0)
    at = [r.limit_bytes / MB for r in peak]
    for values, colour, marker, name, shift in (([r.uniform for r in peak], BLUE, "s", "best uniform choice", (10, 4)),
                                                ([r.ours for r in peak], VERMILLION, "*", "qra_bo", (-11, 0))):
        ppl = [math.exp(v) for v in values]
        ax.plot(at, ppl, color=colour, marker=marker, markersize=12 if marker == "*" else 7, linewidth=1.6, zorder=3)
        ax.annotate(name, (at[0], ppl[0]), textcoords="offset points", xytext=shift, color=colour, fontsize=10.5,
                    ha="left" if shift[0] > 0 else "right", va="center")
    for row, name in ((qlora, "QLoRA (4 bits, rank 16)"), (lora, "LoRA, 16 bits")):
        x, y = row["peak_bytes"] / MB, math.exp(row["mean"])
        ax.scatter([x], [y], color=PURPLE, marker="D", s=52, zorder=3)
        ax.annotate(name, (x, y), textcoords="offset points", xytext=(-9 if x > 700 else 9, 7), color=PURPLE,
                    fontsize=10.5, ha="right" if x > 700 else "left")
    ax.margins(x=0.12, y=0.12)
    dress(ax, LIGHT, "memory at the peak of training (MB)", "test perplexity (lower is better)",
          "SmolLM2-135M on Shakespeare's plays, 24 training steps: a demonstration")
    return fig


def main() -> None:
    FIGURE.write_bytes(png_bytes(draw()))
    print(markdown())


if __name__ == "__main__":
    main()
