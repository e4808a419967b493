"""Comparison of adapter initialisations: every ``adapter.init`` on the same allocations, data and training seeds.

    python -m bench.inits [--inits kaiming eva ...] [--choices 4,4 3,16] [--seeds 5] [--work FOLDER] [overrides ...]

Every initialisation tries the same factors on the learning rate on the validation split, is then trained on unseen
seeds and evaluated on the test split. Trials are kept in ``--work``; the same command resumes them.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from bench.report import RESULTS, Target, publish
from bench.sessions import table_session
from bench.table1.rates import calibrate
from bench.table1.recipe import Recipe
from bench.table1.session import Session
from bench.table1.statistics import difference
from qra_bo.config import load_config
from qra_bo.config.groups import AdapterConfig
from qra_bo.memory.budget import parse_budget
from qra_bo.space import Allocation, uniform
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.setting import training_seeds

PLAIN = "kaiming"
INITS = tuple(get_args(get_type_hints(AdapterConfig)["init"]))
DEFAULTS = ("budget=uniform:4,16", "display=none", "calibrate.lr_scales=[0.5,1.0]", "dtype=bfloat16",
            "quantizer.rounding=rtn")
CHOICES = ("4,4", "3,16")
"""Bits and rank everywhere: what nearly fits the first reference budget, and one where quantisation hurts."""
LR_TRIALS = 3
Row = dict[str, Any]


def run(session: Session, name: str, allocation: Allocation, init: str, seeds: Sequence[int]) -> Row:
    """One start of one allocation: its learning rate, then the finals."""
    recipe = Recipe(allocation, init)

    def trial(scale: float) -> float | None:
        loss = session.evaluate(recipe, scale, session.train_seed, "validation")["loss"]
        return None if loss is None else float(loss)

    rate = calibrate(sorted(session.config.calibrate.lr_scales), LR_TRIALS, trial)
    losses = {} if rate is None else {s: session.evaluate(recipe, rate.lr_scale, s, "test")["loss"] for s in seeds}
    return {"choice": name, "init": init, "lr_scale": None if rate is None else rate.lr_scale,
            "trials": [] if rate is None else [list(t) for t in rate.trials],
            "test_losses": {s: loss for s, loss in losses.items() if loss is not None}}


def against_plain(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Every row with its paired difference from the plain start of the same allocation."""
    plain = {r["choice"]: r["test_losses"] for r in rows if r["init"] == PLAIN}
    found = []
    for r in rows:
        compared = None if r["init"] == PLAIN else difference(r["test_losses"], plain.get(r["choice"], {}))
        found.append({**r, **({} if compared is None else {"mean": compared.mean, "low": compared.low,
                                                           "high": compared.high, "verdict": compared.verdict})})
    return found


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Whether a start is better than the plain one on every allocation: then it should be the default."""
    targets = []
    for init in dict.fromkeys(r["init"] for r in rows if r["init"] != PLAIN):
        of = [r.get("verdict") for r in rows if r["init"] == init]
        known = None not in of
        targets.append(Target(f"allocations on which adapter.init={init} is better than {PLAIN}",
                              f"{len(of)} of {len(of)}, to be the default",
                              float(sum(v == "better" for v in of)) if known else None,
                              known and all(v == "better" for v in of), "" if known else "no loss to compare"))
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inits", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), help="BITS,RANK everywhere")
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help="unseen training seeds")
    parser.add_argument("--work", type=Path, default=Path("outputs/inits"), help="where evaluations are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    args = parser.parse_args(argv)
    config = load_config([*DEFAULTS, *args.overrides])
    rows: list[Row] = []
    with table_session(config, args.work) as session:
        seeds = training_seeds(config.seed, args.seeds)[1]
        for init in dict.fromkeys((PLAIN, *args.inits)):  # one start after another: its factors are kept in memory
            for choice in args.choices:
                size = parse_budget(f"uniform:{choice}")
                fmt = config.quantizer.formats[size.bits or 4][0]
                allocation = uniform(session.space.n_units, fmt, size.rank or 1)
                rows.append(run(session, f"{fmt} r={size.rank}", allocation, init, seeds))
                print(f"{rows[-1]['choice']}, {init}: {rows[-1]['test_losses']}", flush=True)
    table = against_plain(rows)
    publish(f"inits_{config.data.name}", targets_of(table), table,
            ("choice", "init", "lr_scale", "mean", "low", "high", "verdict"), folder=args.out)


if __name__ == "__main__":
    main()
