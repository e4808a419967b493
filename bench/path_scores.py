"""How path-based sensitivity ranks real trials, beside the measures that a profile has.

    python -m bench.path_scores

Every measure predicts the rows of a table, by its sum over units, or by a line in that sum, the sum of roots and the
logarithm of the mean rank, fitted to the other folds. Trains nothing; a table without path.json (of ``python -m
bench.path_sensitivity``) is left out.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from bench.collect.task import DATA, TASKS
from bench.emulators import bands
from bench.noise_losses import FINDS
from bench.predictors import within
from bench.report import publish
from qra_bo.oracle.emulator.emulator import usable
from qra_bo.oracle.emulator.table import Table, load_rows, load_table
from qra_bo.sensitivity.importance import BELIEVED, MEASURES
from qra_bo.space import FloatArray

PATH, FILE, RESAMPLES = "path-based", "path.json", 1000
COLUMNS = ("task", "rows_are", "band", "measure", "by", "n", "spearman", "spearman_less_believed", "regret",
           "regret_less_believed", "format", "kl", "sum", "sum_of_single_kl")
Row = dict[str, Any]


def ranked(predicted: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Spearman's correlation of ``m x n`` predictions with losses, ``m``, and the regret (nats), ``m``: the loss of the
    row with the least prediction less the least loss."""
    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (predicted, losses))
    shared = (a * b).sum(axis=1) / np.maximum(np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)), 1e-300)
    least = np.take_along_axis(losses, predicted.argmin(axis=1)[:, None], axis=1)[:, 0]
    return shared, least - losses.min(axis=1)


def scores(table: Table, path_based: FloatArray, rows_are: str) -> list[Row]:
    """Rows of one set of real losses: every measure in every band of the limits, beside the combined one that is
    qra_bo's default.

    Intervals of differences to that are of a bootstrap over rows.
    """
    data, rng = usable(table), np.random.default_rng(0)
    losses, ranks = data.targets[:, -1], np.log([np.mean(a.ranks) for a in data.allocations])
    column = {name: i for i, name in enumerate(table.profile.formats)}
    chosen = np.array([[column[f] for f in a.formats] for a in data.allocations])
    units, rows = np.arange(chosen.shape[1]), []
    measures = {**{name: of(table.profile) for name, of in MEASURES.items()}, PATH: path_based}
    for band, inside in bands(table, data).items():
        found = {}
        drawn = np.vstack([np.arange(inside.sum()), rng.integers(0, inside.sum(), (RESAMPLES, inside.sum()))])
        for name, damage in measures.items():
            total = damage[units, chosen].sum(axis=1)
            roots = np.sqrt(np.clip(damage, 0.0, None))[units, chosen].sum(axis=1)
            line = within(np.column_stack([total, roots, ranks]), losses, inside)
            for by, values in (("sum", total), ("line", line)):
                found[name, by] = ranked(values[inside][drawn], losses[inside][drawn])
        for (name, by), (spearman, regret) in found.items():
            own = found[BELIEVED, by]
            apart = [np.quantile(x[1:] - y[1:], [0.025, 0.975]).tolist()
                     for x, y in zip((spearman, regret), own, strict=True)]
            rows.append({"task": table.facts.task, "rows_are": rows_are, "band": band, "measure": name, "by": by,
                         "n": int(inside.sum()), "spearman": float(spearman[0]), "spearman_less_believed": apart[0],
                         "regret": float(regret[0]), "regret_less_believed": apart[1]})
    return rows


def main() -> None:
    rows: list[Row] = []
    for folder in (DATA / task for task in TASKS if (DATA / task / FILE).exists()):
        table, found = load_table(folder), json.loads((folder / FILE).read_text(encoding="utf-8"))
        path_based, single = np.array(found["sensitivity"]), table.profile.quantization_kl.sum(axis=0)
        rows += [{"task": table.facts.task, "format": fmt, "points": found["points"], "kl": kl, "sum": total,
                  "sum_of_single_kl": alone} for fmt, kl, total, alone in zip(
                      found["formats"], found["kl"], path_based.sum(axis=0).tolist(), single.tolist(), strict=True)]
        more = replace(table, rows=(*table.rows, *load_rows(folder / FINDS, table.facts)))
        rows += [*scores(table, path_based, "table"), *scores(more, path_based, "table and finds")]
    publish("path_sensitivity", [], rows, COLUMNS)


if __name__ == "__main__":
    main()
