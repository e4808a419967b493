"""Predictors of the loss after fine-tuning, compared with the real losses of the tables.

    python -m bench.predictors [--tables plays ...] [--data gsm8k=FILE.jsonl]

Perplexity after quantisation (of the whole model, without training) is measured once for every choice of formats in a
table and kept in its ``quantised.csv``; the rest is computed from the table's files. Figure 3's compensation is the
rank correlation of bits and ranks over the units of good allocations.
"""

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablations import REPORTED_PERPLEXITY, compensation
from bench.collect.task import DATA, RECORD_AT, TASKS, task_config
from bench.emulator.emulator import usable
from bench.emulator.levels import Levelled
from bench.emulator.table import ROWS, Table, load_table
from bench.emulators import bands, correlation
from bench.report import Target, publish
from bench.search.quality import told_of
from qra_bo.config import make_space, make_spec
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.executors import make_executor
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.sensitivity.importance import BELIEVED, DIVERGENCE, RISE, measured_sensitivity
from qra_bo.sensitivity.io import load_profile
from qra_bo.space import FloatArray, average_bits

QUANTISED = "quantised.csv"
MORE_TEXT = "profile_32.json"
"""A second profile of a table's units, on more text than its own; its first rows were designed with it."""
BEST = 10
"""Best known allocations near a budget whose bits and ranks are set against one another."""
FOLDS = 10
PERPLEXITY, EARLY, OURS = "perplexity after quantisation", "loss after {} steps", "our surrogate, left one out"
WITH_SHAPE = "loss after {} steps, average bits and rank: a line fitted to the other folds"
SUMS = {RISE: "sum of I_q", DIVERGENCE: "sum of divergences", BELIEVED: "sum of believed sensitivity"}
OF_THE_LOSS = (OURS, *(WITH_SHAPE.format(steps) for steps in RECORD_AT))
"""Predictors in nats, whose root mean square error (``deviation``) can be set against the noise."""
Row = dict[str, Any]


def load_quantised(path: Path) -> dict[str, float]:
    """Loss before training (nats per token) by choice of formats; empty where none was measured."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["formats"]: float(row["loss"]) for row in csv.DictReader(file)}


def measure(folder: Path, data: Levelled, path: str | None) -> dict[str, float]:
    """``load_quantised`` of all choices of formats in the table, the missing ones measured and written down."""
    file = folder / QUANTISED
    known = load_quantised(file)
    wanted = list(dict.fromkeys(" ".join(a.formats) for a in data.allocations))
    missing = [key for key in wanted if key not in known]
    if missing:
        with tempfile.TemporaryDirectory(prefix="qra_bo-") as scratch:
            executor = make_executor(task_config(folder.name, path), Path(scratch))
            try:
                choices = [key.split() for key in missing]
                found = executor.call("bench.table1.base_errors:joint_sensitivity", {"choices": choices}, quiet)
            finally:
                executor.close()
        known.update(zip(missing, found["loss"], strict=True))
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["formats", "loss"])
            writer.writerows([key, f"{loss:.6f}"] for key, loss in known.items())
    return known


def predictions(table: Table, data: Levelled,
                quantised: Mapping[str, float]) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """What every predictor says of ``n`` allocations: numbers that should grow with the loss, NaN where it has none.

    Returns:
        The numbers by predictor; and features, ``n x k``, of predictors that are fitted to each band.
    """
    config = task_config("plays", None)  # the space is the model's, whatever the text
    space = make_space(config, make_spec(config))
    column = {name: i for i, name in enumerate(table.profile.formats)}
    bits = np.array([average_bits([parse_format(f).bits for f in a.formats], space.unit_numel)
                     for a in data.allocations])
    ranks = np.array([np.mean(a.ranks) for a in data.allocations])
    chosen = np.array([[column[f] for f in a.formats] for a in data.allocations])
    units = np.arange(chosen.shape[1])
    shapes: dict[str, FloatArray] = {}
    found = {PERPLEXITY: np.array([quantised.get(" ".join(a.formats), np.nan) for a in data.allocations])}
    for kind, name in SUMS.items():
        damage = measured_sensitivity(table.profile, kind)
        total = damage[units, chosen].sum(axis=1)
        roots = np.sqrt(np.clip(damage, 0.0, None))[units, chosen].sum(axis=1)
        found[name] = total
        shapes[f"{name}, its root and ranks: a line fitted to the band's other folds"] = np.column_stack(
            [total, roots, np.log(ranks)])
    found |= {"average bits, the most first": -bits, "average rank, the largest first": -ranks}
    for i, steps in enumerate(table.facts.record_at):
        early = data.targets[:, i]
        found[EARLY.format(steps)] = early
        found[WITH_SHAPE.format(steps)] = in_folds(np.column_stack([np.log(early), bits, np.log(ranks)]),
                                                   data.targets[:, -1])
    budget = table.facts.budgets[0]
    problem = SearchProblem(space, table.costs[budget.scope], budget.bytes, table.profile, table.facts.steps, None, 0)
    inside = np.array([space.contains(a) for a in data.allocations])
    searcher = StructuredSearch(problem)
    searcher.tell(told_of(problem, [a for a, known in zip(data.allocations, inside, strict=True) if known],
                          data.targets[inside, -1]))
    check = searcher.surrogate_check()
    if check is not None:
        found[OURS] = np.full(len(bits), np.nan)
        found[OURS][inside] = check["predicted"]
    return found, shapes


def in_folds(features: FloatArray, losses: FloatArray) -> FloatArray:
    """Losses, ``n``, as least squares on ``n x k`` features predict them from the other folds; of their logarithms, for
    they explode at low bits."""
    x = np.column_stack([np.ones(len(losses)), features])
    known = np.isfinite(x).all(axis=1) & np.isfinite(losses)
    fold = np.random.default_rng(0).permutation(len(losses)) % FOLDS
    predicted = np.full(len(losses), np.nan)
    for k in range(FOLDS):
        train, test = known & (fold != k), known & (fold == k)
        weights = np.linalg.lstsq(x[train], np.log(losses[train]), rcond=None)[0]
        predicted[test] = np.exp(x[test] @ weights)
    return predicted


def within(features: FloatArray, losses: FloatArray, inside: np.ndarray) -> FloatArray:
    """``in_folds`` of the rows in a band, ``n``; NaN elsewhere."""
    values = np.full(len(losses), np.nan)
    values[inside] = in_folds(features[inside], losses[inside])
    return values


def rows_of(table: Table, data: Levelled, found: Mapping[str, FloatArray],
            shapes: Mapping[str, FloatArray]) -> list[Row]:
    """Rank correlation of every predictor with the final loss, by band of the budget; and compensation."""
    losses = data.targets[:, -1]
    rows: list[Row] = []
    for band, inside in bands(table, data).items():
        base = {"task": table.facts.task, "band": band}
        fitted = {name: within(features, losses, inside) for name, features in shapes.items()}
        for name, values in {**found, **fitted}.items():
            known = inside & np.isfinite(values)
            rows.append({**base, "predictor": name, "allocations": int(known.sum()),
                         "spearman": correlation(values[inside], losses[inside])})
            if name in {*OF_THE_LOSS, *fitted} and known.any():
                rows[-1]["deviation"] = float(np.sqrt(np.mean((values[known] - losses[known]) ** 2)))
        if band.startswith("near "):
            best = np.flatnonzero(inside)[np.argsort(losses[inside])][:BEST]
            each = [compensation(data.allocations[i]) for i in best]
            defined = [c for c in each if c is not None]
            rows.append({**base, "predictor": f"bits against ranks over units, {BEST} best", "each": each,
                         "allocations": len(defined), "spearman": float(np.mean(defined)) if defined else None})
    return rows


def of_less_text(folder: Path, table: Table) -> list[Row]:
    """Rank correlation over units of each measure of the table's profile with that of one on more text, by format."""
    if not (folder / MORE_TEXT).exists():
        return []
    more, rows = load_profile(folder / MORE_TEXT), []
    for name, of in (("rise", lambda p: p.quantization_sensitivity), ("divergence", lambda p: p.quantization_kl)):
        what = f"{name} of units, {table.profile.source}, against {more.source}"
        rows += [{"task": table.facts.task, "band": fmt, "predictor": what, "allocations": len(more.units),
                  "spearman": correlation(of(table.profile)[:, i], of(more)[:, more.formats.index(fmt)])}
                 for i, fmt in enumerate(table.profile.formats)]
    gains = [p.require_rank_sensitivity()[:, -1] for p in (table.profile, more)]
    return [*rows, {"task": table.facts.task, "band": "largest rank", "predictor": "gain of units, likewise",
                    "allocations": len(more.units), "spearman": correlation(*gains)}]


def targets_of(rows: Sequence[Row], tasks: Sequence[str]) -> list[Target]:
    """Our surrogate against perplexity after quantisation, in every band near a budget."""
    targets = []
    for task in tasks:
        for band in dict.fromkeys(r["band"] for r in rows if r["task"] == task and r["band"].startswith("near ")):
            of = {r["predictor"]: r["spearman"] for r in rows if (r["task"], r["band"]) == (task, band)}
            ours, perplexity = of.get(OURS), of.get(PERPLEXITY)
            known = ours is not None and perplexity is not None
            targets.append(Target(
                f"{task}, {band}: rank correlation of our surrogate with the loss", f"above perplexity's, {perplexity} "
                f"({REPORTED_PERPLEXITY} reported)", ours if known else None,
                known and ours > perplexity, "" if known else "perplexity was not measured"))
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.predictors", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TASKS), help="all that there are by default")
    parser.add_argument("--data", nargs="*", default=[], help="TASK=FILE of tasks that need a file")
    parser.add_argument("--known", action="store_true", help="measure no perplexity: take what quantised.csv holds")
    args = parser.parse_args(argv)
    files = dict(part.split("=", 1) for part in args.data)
    tasks = args.tables or [task for task in TASKS if (DATA / task / ROWS).exists()]
    rows: list[Row] = []
    for task in tasks:
        table = load_table(DATA / task)
        data = usable(table)
        known = args.known or (TASKS[task] == "jsonl" and task not in files)
        quantised = load_quantised(DATA / task / QUANTISED) if known else measure(DATA / task, data, files.get(task))
        rows += [*rows_of(table, data, *predictions(table, data, quantised)), *of_less_text(DATA / task, table)]
    publish("predictors", targets_of(rows, tasks), rows,
            ("task", "band", "predictor", "allocations", "spearman", "deviation"))


if __name__ == "__main__":
    main()
