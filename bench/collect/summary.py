"""Summary of the tables: ``bench/results/collect.json``."""

from collections import Counter
from pathlib import Path
from typing import Any

from bench.collect.task import DATA
from bench.emulator.table import ROWS, load_table
from bench.report import RESULTS, Target, publish

EVALUATIONS, REPEATED = 150, 30


def summary_rows(data: Path) -> list[dict[str, Any]]:
    """One row for every table below ``data``: evaluations, why they are there, and allocations that were repeated."""
    found = []
    for folder in sorted(path.parent for path in data.glob(f"*/{ROWS}")):
        rows = load_table(folder).rows
        seeds = Counter(allocation for allocation, _ in {(r.allocation, r.train_seed) for r in rows})
        origins = Counter(r.origin.split(" ")[0] for r in rows)
        found.append({"task": folder.name, "evaluations": len(rows), "allocations": len(seeds),
                      "repeated": sum(n > 1 for n in seeds.values()),
                      "without_a_loss": sum(r.loss is None for r in rows),
                      "hours": sum(r.seconds for r in rows) / 3600,
                      "origins": ", ".join(f"{n} {origin}" for origin, n in origins.most_common())})
    return found


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """Enough evaluations of every task, and enough of them repeated."""
    repeated = sum(row["repeated"] for row in rows)
    return [*(Target(f"evaluations in the table of {row['task']}", f">= {EVALUATIONS}", row["evaluations"],
                     row["evaluations"] >= EVALUATIONS) for row in rows),
            Target("allocations on more than one training seed, in all tables", f">= {REPEATED}", repeated,
                   repeated >= REPEATED)]


def publish_summary(out: Path = RESULTS) -> None:
    """Print and write what the published tables hold."""
    rows = summary_rows(DATA)
    publish("collect", targets_of(rows), rows,
            ("task", "evaluations", "allocations", "repeated", "without_a_loss", "hours"), folder=out)
