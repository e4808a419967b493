"""Figure and table of README, from committed results: perplexity within four memory limits.

    python -m bench.headline            (writes docs/figures/perplexity.png, prints the table)

Rows are of the comparison (``bench/results/table1/table1.json``), the last ones of searches for a longer training
(``LONGER``). The best uniform choice has the same formats to choose from and the same codes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.report import RESULTS
from qra_bo.memory.budget import parse_size
from qra_bo.report.style import BLUE, MUTED, PURPLE, VERMILLION, axes, dress, legend, png_bytes
from qra_bo.report.text import size
from qra_bo.utils.formatting import signed

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "perplexity.png"
TABLE = "table1/table1.json"
LONGER, LONGER_LIMIT = "length_searched.json", "54MB"
LONGER_UNIFORM, LONGER_OURS = "best uniform choice", "searched for 240 steps"
SHORT_STEPS = 24
"""Optimiser steps of the comparison's rows."""
LIMITS = ("stored 54MB", "stored uniform:4,16", "peak uniform:4,4", "peak uniform:4,16")
OURS, UNIFORM = ("qra_bo_finer_gptq", "qra_bo_gptq"), ("best_uniform_finer_gptq", "best_uniform_gptq")
"""Rows by preference: those with 5 and 6 bits on the ladder are not in every table."""
OTHERS = ("loftq", "lq_lora", "amq_lora", "autoqra")
HEADINGS = ("memory limit", "QLoRA", "best uniform choice", "qra_bo", "difference, nats (95 % over seeds)")


@dataclass(frozen=True, slots=True)
class Row:
    """Test losses (nats) within one limit; ``qlora`` is ``None`` where QLoRA does not fit, and ``others`` are published
    methods'. ``difference`` is ours less the best uniform choice's, with the ends of its 95 % interval."""

    scope: str
    limit_bytes: int
    qlora: float | None
    uniform: float
    ours: float
    difference: tuple[float, float, float]
    others: tuple[float, ...] = ()
    steps: int = SHORT_STEPS

    @property
    def where(self) -> str:
        return f"{size(self.limit_bytes)} {'at the peak' if self.scope == 'peak' else 'stored'}"

    @property
    def cells(self) -> tuple[str, ...]:
        mean, low, high = map(signed, self.difference)
        where = self.where + (" of training" if self.scope == "peak" else "")
        if self.steps != SHORT_STEPS:
            where += f", {self.steps} steps"
        return (where, "does not fit" if self.qlora is None else _perplexity(self.qlora), _perplexity(self.uniform),
                _perplexity(self.ours), f"{mean} ({low} to {high})")


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.1f}"


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def read_rows() -> tuple[list[Row], Mapping[str, Any]]:
    """Return the rows in the order of ``LIMITS``, those of longer trainings, and the comparison's row of LoRA-16."""
    table = _read(TABLE)
    found = {(r["limit"], r["method"]): r for r in table["rows"] if not r["why"]}
    limits = {limit["name"]: limit for limit in table["limits"]}
    qlora, rows = found["own memory", "qlora"], []
    for name in LIMITS:
        scope, budget = limits[name]["scope"], limits[name]["budget_bytes"]
        ours, uniform = (next(found[name, m] for m in methods if (name, m) in found) for methods in (OURS, UNIFORM))
        d = uniform["same_codes_minus_row"]
        rows.append(Row(scope, budget, qlora["mean"] if qlora[f"{scope}_bytes"] <= budget else None, uniform["mean"],
                        ours["mean"], (d["mean"], d["low"], d["high"]),
                        tuple(found[name, m]["mean"] for m in OTHERS if (name, m) in found)))
    return [*rows, *_longer()], found["own memory", "lora_16"]


def _longer() -> list[Row]:
    """Return a row for each length of the allocation that a search for the longer training finds, over unseen seeds."""
    found = {(r["steps"], r["name"]): r for r in _read(LONGER)["rows"]
             if (r["text"], r["label"]) == ("plays", LONGER_LIMIT)}
    return [Row("stored", parse_size(LONGER_LIMIT), None, found[steps, LONGER_UNIFORM]["loss"], row["loss"],
                (d["mean"], d["low"], d["high"]), steps=steps)
            for (steps, name), row in found.items() if name == LONGER_OURS and (d := row["minus"][LONGER_UNIFORM])]


def markdown() -> str:
    """Return the table as README has it."""
    lines = (HEADINGS, ["---"] * len(HEADINGS), *(r.cells for r in read_rows()[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw() -> Figure:
    """Draw the perplexities within every limit, and that of LoRA on 16 bits, which has none."""
    rows, lora = read_rows()
    rows = [r for r in rows if r.steps == SHORT_STEPS]
    fig, ax = axes(8.0, 4.2)
    ax.axhline(math.exp(lora["mean"]), color=MUTED, linewidth=1.2, linestyle="--",
               label="LoRA on 16 bits, no limit")
    for side, name, marker, colour, area, values in (
            (-0.12, "LoftQ, LQ-LoRA, AMQ, AutoQRA", "o", MUTED, 34, [r.others for r in rows]),
            (-0.04, "QLoRA", "D", PURPLE, 60, [() if r.qlora is None else (r.qlora,) for r in rows]),
            (0.04, "best uniform choice", "s", BLUE, 60, [(r.uniform,) for r in rows]),
            (0.12, "qra_bo", "*", VERMILLION, 190, [(r.ours,) for r in rows])):
        points = [(i + side, math.exp(v)) for i, losses in enumerate(values) for v in losses]
        ax.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=area, label=name, zorder=3)
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_xticks(range(len(rows)), [r.where for r in rows])
    dress(ax, "memory limit", "test perplexity (lower is better)",
          "SmolLM2-135M on Shakespeare's plays, 24 training steps: a demonstration")
    legend(fig, ax)
    return fig


def main() -> None:
    FIGURE.write_bytes(png_bytes(draw()))
    print(markdown())


if __name__ == "__main__":
    main()
