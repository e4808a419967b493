"""Our method, the best peers and the published method on the real oracle: equal cost, finals on unseen seeds.

    python -m bench.search.real [--seeds 0 1 2] [--methods NAME ...] [--work outputs/real-search] [--summary]
                                [overrides ...]

What the searches of one seed come to is trained on five seeds that no search used and evaluated on the test split.
Searches and finals are kept in ``--work``, one folder a seed, and gone on with; several processes may do a seed each,
and --summary then writes bench/results/search_real.json.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablations import FINALS
from bench.published import scaled_autoqra
from bench.report import RESULTS, Target, publish
from bench.search.methods import EVERYTHING
from bench.sessions import limit_of, table_session
from bench.table1.recipe import Recipe
from bench.table1.search import search
from qra_bo.config import RunConfig, load_config
from qra_bo.study.intervals import paired_interval
from qra_bo.study.setting import training_seeds
from qra_bo.utils.files import write_json

DEFAULTS = ("budget=uniform:4,16", "memory.scope=stored", "effort=normal", "display=none",
            "dtype=bfloat16", "search.length=trial", "quantizer.rounding=rtn")
"""On the embedded model and text, at the second reference budget, in the table's compute type; overrides replace these.
"""
METHODS = {name: EVERYTHING[name] for name in (
    "qra_bo", "sequential bits", "sequential bits, then ranks", "bits by believed sensitivity",
    "bits by believed sensitivity, then ranks", "published")}
"""Ours, the peers with the least regret on the emulators (with the published I_q, and told what ours believes of
damage), and the published method."""
ROWS = "real.json"
SEEDS = 3
Row = dict[str, Any]


def rows_in(folder: Path) -> list[Row]:
    """What was written of one seed."""
    path = folder / ROWS
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def run_seed(config: RunConfig, folder: Path, names: Sequence[str]) -> list[Row]:
    """The named methods at one seed, begun or gone on with; rows of others in ``folder`` are kept."""
    limit = limit_of(config)
    rows = [row for row in rows_in(folder) if row["method"] not in names]
    with table_session(config, folder) as session:
        for name in names:
            entry = METHODS[name]
            options = scaled_autoqra(config) if entry.kind == "published" else entry.options
            outcome = search(session, name, limit, entry.method, options)
            study, found = outcome.study, outcome.found
            recipe = Recipe(found.allocation, config.adapter.init)
            factor = 1.0 if study.learning_rate is None else study.learning_rate / config.adapter.lr
            finals = {str(s): session.evaluate(recipe, factor, s, "test")["loss"]
                      for s in training_seeds(config.seed, FINALS)[1]}
            uniform_best = study.best_uniform
            rows.append({"method": name, "seed": config.seed, "task": config.data.name, "scope": limit.scope,
                         "budget": limit.budget, "oracle": config.oracle.name, "test_losses": finals,
                         "search_loss": found.loss, "allocation": found.allocation.to_json(),
                         "best_uniform": None if uniform_best is None else uniform_best.loss,
                         "equivalents": study.search_cost.tokens / float(study.header["full_trial_tokens"])})
            print(f"seed {config.seed}: {name}: {np.mean(list(finals.values())):.4f} on the test split, after "
                  f"{rows[-1]['equivalents']:.1f} equivalents", flush=True)
            write_json(folder / ROWS, rows)
    return rows


def differences(rows: Sequence[Mapping[str, Any]], peer: str) -> list[float]:
    """Test loss of ours less that of ``peer``, for every search seed and training seed that both have."""
    of = {(r["method"], r["seed"]): r["test_losses"] for r in rows}
    return [of["qra_bo", seed][s] - loss for (name, seed), losses in of.items()
            if name == peer and ("qra_bo", seed) in of for s, loss in losses.items() if loss is not None
            and of["qra_bo", seed].get(s) is not None]


def by_search(rows: Sequence[Mapping[str, Any]], peer: str) -> list[float]:
    """The mean difference of every search seed: searches, not training seeds, are the sample."""
    seeds = dict.fromkeys(r["seed"] for r in rows)
    parts = [differences([r for r in rows if r["seed"] == seed], peer) for seed in seeds]
    return [float(np.mean(part)) for part in parts if part]


def comparison(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Ours against each other method."""
    found = []
    for peer in METHODS:
        values = by_search(rows, peer)
        if peer != "qra_bo" and values:
            known = paired_interval(values) if len(values) > 1 else None
            found.append({"qra_bo_against": peer, "mean": float(np.mean(values)),
                          "low": None if known is None else known.low, "high": None if known is None else known.high,
                          "searches": len(values), "wins": sum(v < 0 for v in values)})
    return found


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Whether ours has the lower loss, method by method."""
    known = {r["qra_bo_against"]: r for r in comparison(rows)}
    targets = []
    for peer in METHODS:
        if peer == "qra_bo":
            continue
        row = known.get(peer)
        done = row is not None and row["searches"] >= SEEDS
        targets.append(Target(
            f"real oracle, 40 equivalents: test loss of qra_bo less that of {peer}, mean of {SEEDS} searches (nats)",
            "< 0",
            row["mean"] if row is not None and done else None, row is not None and done and row["mean"] < 0,
            "" if done else f"{0 if row is None else row['searches']} of {SEEDS} searches are done: python -m "
                            "bench.search.real"))
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search.real", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("outputs/real-search"), help="where searches are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--summary", action="store_true", help="only summarise the seeds that are done")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    args = parser.parse_args(argv)
    for seed in [] if args.summary else args.seeds:
        run_seed(load_config([*DEFAULTS, *args.overrides, f"seed={seed}"]), args.work / f"seed-{seed}",
                 args.methods)
    rows = [row for folder in sorted(args.work.glob("seed-*")) for row in rows_in(folder)]
    table = comparison(rows)
    publish("search_real", targets_of(rows), [*table, *rows],
            ("qra_bo_against", "mean", "low", "high", "searches", "wins"), shown=table, folder=args.out)


if __name__ == "__main__":
    main()
