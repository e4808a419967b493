"""Median regret against cost, one picture for every arena."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_bo.report.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, dress, figure, legend, png_bytes

COLOURS = (ORANGE, GREEN, VERMILLION, PURPLE, SKY)
DASHES = ("-", "--", ":")
FLOOR = 1e-3


def plot_arenas(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write ``TASK-EMULATOR-BUDGET.png`` for every arena of ``search_rows``; ablations are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    arenas = list(dict.fromkeys((r["task"], r["emulator"], r["budget"]) for r in rows))
    paths = []
    for task, emulator, budget in arenas:
        here = [r for r in rows if (r["task"], r["emulator"], r["budget"]) == (task, emulator, budget)
                and r["kind"] not in ("ablation", "transfer")]
        fig = figure(7.0, 6.0)
        ax = fig.add_subplot()
        others = 0
        for row in here:
            ours = row["kind"] == "qra_bo"
            colour = BLUE if ours else COLOURS[others % len(COLOURS)]
            style = "-" if ours else DASHES[others // len(COLOURS) % len(DASHES)]
            others += not ours
            curve = [max(v, FLOOR) for v in row["curve"]]
            ax.plot(row["costs"], curve, color=colour, linestyle=style, linewidth=2.2 if ours else 1.2,
                    label=f"{row['method']} ({row['seeds']})")
            if ours:
                low, high = ([max(v, FLOOR) for v in q] for q in row["quartiles"])
                ax.fill_between(row["costs"], low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_yscale("log")
        dress(ax, "cost (full-trial equivalents)", "median regret (best uniform = 1)",
              f"{task}, {emulator} emulator, {budget} (seeds in brackets)")
        legend(fig, ax)
        path = folder / f"{task}-{emulator}-{budget.replace(':', '-').replace(',', '-')}.png"
        path.write_bytes(png_bytes(fig))
        paths.append(path)
    return paths
