"""The best finds of every method, and their real losses."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.collect.writing import FINDS
from bench.emulator.emulator import table_rate
from bench.emulator.table import Table, TableRow, load_rows, pooled, same_rate
from bench.report import Target
from qra_bo.space import Allocation
from qra_bo.study.state import is_uniform

N_FINDS = 5
REAL = "real finds"
Find = dict[str, Any]


def chosen(runs: Sequence[Mapping[str, Any]]) -> list[Find]:
    """The ``N_FINDS`` best allocations of every method within each budget of a task, by the emulators' mean rank.

    Each emulator's finds are ranked by its own noise-free loss, and emulators take turns, so that none decides alone.
    """
    pools: dict[tuple[str, str, str], dict[str, dict[Allocation, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for find in run["finds"]:
            pool = pools[run["task"], run["budget"], run["method"]][run["emulator"]]
            pool[Allocation.from_json(find)] = find["true_loss"]
    found: list[Find] = []
    for (task, budget, method), by_emulator in sorted(pools.items()):
        ranked = [sorted(pool, key=lambda a, pool=pool: (pool[a], a.fingerprint))  # type: ignore[misc]
                  for _, pool in sorted(by_emulator.items())]
        turns = [a for place in range(max(map(len, ranked))) for order in ranked for a in order[place:place + 1]]
        found += [{"task": task, "budget": budget, "method": method, **a.to_json()}
                  for a in list(dict.fromkeys(turns))[:N_FINDS]]
    return found


def write_finds(finds: Sequence[Find], folder: Path) -> list[Path]:
    """One file for every task, for ``python -m bench.collect --finds``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in sorted({f["task"] for f in finds}):
        path = folder / f"finds-{task}.json"
        path.write_text(json.dumps([f for f in finds if f["task"] == task], indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def real_rows(table: Table, folder: Path, finds: Sequence[Find]) -> list[dict[str, Any]]:
    """For every method and budget: how many of its finds were evaluated for real, and their losses less that of the
    best uniform choice that fits, at the table's first training seed."""
    known = load_rows(folder / FINDS, table.facts)
    own = _own(table, known)
    losses = {row.allocation: row.loss for row in own}
    rows = []
    for budget in table.facts.budgets:
        uniform = [row.loss for row in own if is_uniform(row.allocation) and row.loss is not None
                   and row.bytes[budget.scope] <= budget.bytes]
        here = [f for f in finds if (f["task"], f["budget"]) == (table.facts.task, budget.text)]
        for method in dict.fromkeys(f["method"] for f in here):
            mine = [Allocation.from_json(f) for f in here if f["method"] == method]
            real = [loss for a in mine if (loss := losses.get(a)) is not None]
            gain = np.array(real) - min(uniform) if real and uniform else None
            rows.append({"what": REAL, "task": table.facts.task, "budget": budget.text, "method": method,
                         "finds": len(mine), "measured": len(real),
                         "best_difference": None if gain is None else float(gain.min()),
                         "mean_difference": None if gain is None else float(gain.mean())})
    return rows


def published_finds(folder: Path) -> list[Find]:
    """What ``write_finds`` wrote, of all tasks."""
    return [find for path in sorted(folder.glob("finds-*.json")) for find in json.loads(path.read_text())]


def _own(table: Table, more: Sequence[TableRow] = ()) -> list[TableRow]:
    """Rows with a loss at the table's first training seed and its own learning rate."""
    rate = table_rate(table.rows)
    return [row for row in pooled((*table.rows, *more)) if row.train_seed == table.facts.train_seeds[0]
            and same_rate(row.lr_scale, rate)]


def finds_target(rows: Sequence[Mapping[str, Any]]) -> Target:
    """Whether every method's finds were evaluated for real."""
    what = f"methods whose {N_FINDS} best finds were evaluated for real, in every task and budget"
    done = [row for row in rows if row["measured"] == row["finds"] > 0]
    if not rows or len(done) < len(rows):
        return Target(what, f"{len(rows)} of {len(rows)}", None, False,
                      f"{len(done)} of {len(rows)} are done: python -m bench.collect --task TASK --finds "
                      "bench/results/search/finds-TASK.json")
    return Target(what, f"{len(rows)} of {len(rows)}", float(len(done)), True)
