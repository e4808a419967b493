"""Accuracy of the emulators of each table on held-out trials, beside the noise ceiling.

    python -m bench.emulators [TABLE ...] [--folds 10]

Folds are over allocations, with repeats in one fold. *Near* a budget means 97 % to 100 % of it; *good near* is the
better half of these. The ceiling is the mean rank correlation of the true losses with losses that have the noise of the
repeats. Early losses are compared with the final ones, to judge the low fidelity.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.collect.task import DATA
from bench.emulator.emulator import FAMILIES, FIT_SEED, usable
from bench.emulator.features import Describer
from bench.emulator.levels import Levelled
from bench.emulator.table import ROWS, TASK, Table, load_table
from bench.report import publish
from qra_bo.space import FloatArray

NEAR = 0.97
LEAST = 8
"""Allocations of a band below which no correlation is given."""
CEILING_DRAWS = 300
Row = dict[str, Any]


def held_out(data: Levelled, describer: Describer, family: str, folds: int) -> FloatArray:
    """Losses of ``n`` allocations as predicted from the other folds, ``n x S``."""
    n = len(data.allocations)
    fold = np.random.default_rng(FIT_SEED).permutation(n) % folds
    predicted = np.full(data.targets.shape, np.nan)
    for k in range(min(folds, n)):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        model = FAMILIES[family](describer, tuple(data.allocations[i] for i in train), data.targets[train], FIT_SEED)
        predicted[test] = model.predict(tuple(data.allocations[i] for i in test))
    return predicted


def bands(table: Table, data: Levelled) -> dict[str, np.ndarray]:
    """Which of the ``n`` allocations are in each band."""
    sizes = {row.allocation: row.bytes for row in table.rows}
    found = {"all": np.ones(len(data.allocations), dtype=bool)}
    for budget in table.facts.budgets:
        used = np.array([sizes[a][budget.scope] for a in data.allocations]) / budget.bytes
        near = (used >= NEAR) & (used <= 1.0)
        found[f"near {budget.text}"] = near
        if near.any():
            found[f"good near {budget.text}"] = near & (data.targets[:, -1] <= np.median(data.targets[near, -1]))
    return found


def correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Spearman's rank correlation of what both know; ``None`` with too few."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < LEAST:
        return None
    value = float(spearmanr(a[known], b[known]).statistic)
    return value if np.isfinite(value) else None


def ceiling(losses: FloatArray, deviations: FloatArray) -> float | None:
    """Mean rank correlation of true losses with noisy ones.

    True losses are taken to be spread as the observed ones are, less the noise.

    Args:
        losses: Observed, ``n``.
        deviations: Standard deviation of the noise in each, ``n``.
    """
    if len(losses) < LEAST:
        return None
    rng, variance = np.random.default_rng(0), float(losses.var())
    share = max(variance - float((deviations**2).mean()), 0.0) / max(variance, 1e-30)
    if share == 0.0:
        return 0.0
    true = losses.mean() + np.sqrt(share) * (losses - losses.mean())
    noisy = true + deviations * rng.standard_normal((CEILING_DRAWS, len(losses)))
    return float(np.mean([spearmanr(true, one).statistic for one in noisy]))


def table_rows(table: Table, folds: int) -> list[Row]:
    """Rows of one table: for each emulator and fidelity in each band, and of the early losses themselves."""
    data = usable(table)
    describer = Describer(table.facts, table.profile)
    steps, inside = (*table.facts.record_at, table.facts.steps), bands(table, data)
    deviations = data.noise.at(data.targets[:, -1]) / np.sqrt(data.counts)
    base: Row = {"task": table.facts.task, "rows": len(table.rows), "noise": data.noise.deviations[0]}
    rows: list[Row] = []
    for family in FAMILIES:
        predicted = held_out(data, describer, family, folds)
        for band, chosen in inside.items():
            for s, step in enumerate(steps):
                final = step == table.facts.steps
                top = ceiling(data.targets[chosen, -1], deviations[chosen]) if final else None
                rows.append({**base, "what": f"held-out {family}", "band": band, "steps": step, "n": int(chosen.sum()),
                             "spearman": correlation(predicted[chosen, s], data.targets[chosen, s]), "ceiling": top})
    for band, chosen in inside.items():
        for s, step in enumerate(table.facts.record_at):
            rows.append({**base, "what": "early loss against the final one", "band": band, "steps": step,
                         "n": int((chosen & np.isfinite(data.targets[:, s])).sum()),
                         "spearman": correlation(data.targets[chosen, s], data.targets[chosen, -1]), "ceiling": None})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="folders of tables; all of bench/data by default")
    parser.add_argument("--folds", type=int, default=10)
    options = parser.parse_args(arguments)
    tables = options.tables or sorted(p.parent for p in DATA.glob(f"*/{TASK}") if (p.parent / ROWS).exists())
    rows = [row for folder in tables for row in table_rows(load_table(folder), options.folds)]
    publish("emulators", [], rows, ["task", "what", "band", "steps", "n", "spearman", "ceiling"])


if __name__ == "__main__":
    main()
