"""Efforts of a search on the real oracle: predicted, quick and normal, at equal limits, with losses on unseen seeds.

    python -m bench.search.real_efforts [--limits 54MB ...] [--seeds 0 1 2] [--efforts instant quick ...]
                                        [--work outputs/real-efforts] [--summary] [overrides ...]

The embedded model and text (the plays), bf16, six formats, codes by GPTQ, trials of 24 steps, limits on stored bytes.
What is learned comes from the table of GSM8K alone. Searches of one limit and seed share what they would train alike,
each at its own charge. What an effort comes to and the best uniform choice of its own search, each at its own search's
learning rate, are then trained on the same five seeds, which no search used, and evaluated on the test split.
Everything is kept in ``--work``, one folder a limit, and gone on with; several processes may do a limit each. A gain is
the loss of the best uniform choice less that of the effort's; shares of a gain are of that of the search ``FULL`` with
the same seed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.ablations import FINALS
from bench.collect.task import DATA
from bench.report import RESULTS, Target, publish
from bench.search.methods import OURS
from bench.search.play import ALONE
from bench.search.real import ROWS, rows_in
from bench.sessions import limit_of
from bench.table1.config import TableConfig, load_options
from bench.table1.recipe import Recipe
from bench.table1.search import search
from bench.table1.session import Session, open_session
from qra_bo.config import RunConfig, load_config
from qra_bo.space import Allocation
from qra_bo.study.intervals import Interval, paired_interval
from qra_bo.study.setting import training_seeds
from qra_bo.utils.files import write_json

LEARNED = DATA / "gsm8k" / ALONE
DEFAULTS = ("memory.scope=stored", "bits=[2,3,4,5,6,8]", "quantizer.rounding=gptq", "search.length=trial",
            "dtype=bfloat16", "display=none", f"surrogate.rates={LEARNED}")
LIMITS = ("54MB", "uniform:4,16")
FULL = "normal, nothing learned"
"""The search that the others' gains are shares of."""
RATES = {"rates": str(LEARNED)}
EFFORTS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "instant": (("effort=instant",), {}), "quick": (("effort=quick",), RATES),
    "quick, stop at 0.1": (("effort=quick", "effort.stop=0.1"), RATES),
    "quick, nothing learned": (("effort=quick",), {}), FULL: (("effort=normal",), {})}
"""Efforts, each with changes of the configuration and the options of its method, which knows no learned rates unless
they name some."""
UNSEEN = 1000
"""Search seed whose unseen training seeds train what all searches come to."""
SEEDS = 3
INSTANT_SHARE, QUICK_SHARE = 0.7, 0.9
Row = dict[str, Any]


def folder_name(limit: str) -> str:
    """Return what the folder of a limit is called."""
    return limit.replace(":", "-").replace(",", "-")


def session_of(config: RunConfig, folder: Path) -> Any:
    """Open a session of searches and trainings that is kept in ``folder``."""
    return open_session(TableConfig(config, load_options()), folder)


def found_by(config: RunConfig, folder: Path, name: str, learned: str = str(LEARNED)) -> Row:
    """Return what an effort comes to at one search seed; its search is begun or gone on with. Where its method knows
    learned rates, they are those of the file ``learned``."""
    (changes, method), limit = EFFORTS[name], limit_of(config)
    if "rates" in method:
        method = {**method, "rates": learned}
    effort = load_config(changes).effort.with_changes(references=False, ranking_top=0, compare=())
    with session_of(config, folder) as session:
        outcome = search(session, name, limit, OURS, method, {"effort": effort})
    study = outcome.study
    full, uniform = float(study.header["full_trial_tokens"]), study.best_uniform
    return {"effort": name, "seed": config.seed, "limit": limit.budget,
            "lr_scale": None if study.learning_rate is None else study.learning_rate / config.adapter.lr,
            "equivalents": study.search_cost.tokens / full, "trials": len(study.trials),
            "seconds": study.last["end"]["wall_seconds"],
            "search_loss": None if outcome.found is None else outcome.found.loss,
            "uniform": None if uniform is None else uniform.allocation.to_json(), **outcome.winner.to_json()}


def trained(session: Session, config: RunConfig, allocation: Allocation, lr_scale: float) -> dict[str, float]:
    """Return the test losses of an allocation by unseen training seeds."""
    q = config.quantizer
    recipe = Recipe(allocation, config.adapter.init, gptq_tokens=q.tokens if q.rounding == "gptq" else None)
    seeds = training_seeds(UNSEEN, FINALS)[1]
    return {str(s): float(session.evaluate(recipe, lr_scale, s, "test")["loss"]) for s in seeds}


def run_limit(text: str, seeds: Sequence[int], efforts: Sequence[str], work: Path, overrides: Sequence[str]) -> None:
    """Search within one limit with each effort and seed, then train what was found; rows are kept as they come."""
    folder = work / folder_name(text)
    for name in efforts:
        for seed in seeds if name != "instant" else (0,):  # what is predicted depends on no seed
            rows = rows_in(folder)
            row = next((r for r in rows if (r["effort"], r["seed"]) == (name, seed)), None)
            if row is None:
                config = load_config([*DEFAULTS, *overrides, f"budget={text}", f"seed={seed}"])
                row = found_by(config, folder / f"seed-{seed}", name)
                rows.append(row)
                write_json(folder / ROWS, rows)
            if "test_losses" not in row:
                config = load_config([*DEFAULTS, *overrides, f"budget={text}", f"seed={UNSEEN}"])
                with session_of(config, folder / "unseen") as session:
                    row["test_losses"] = trained(session, config, Allocation.from_json(row), row["lr_scale"])
                    if row["uniform"] is not None:
                        row["uniform_losses"] = trained(session, config, Allocation.from_json(row["uniform"]),
                                                        row["lr_scale"])
                write_json(folder / ROWS, rows)
            print(f"{text}: {name}, seed {seed}: {np.mean(list(row['test_losses'].values())):.4f} on the test split "
                  f"after {row['equivalents']:.1f} equivalents", flush=True)


def gains(rows: Sequence[Row]) -> list[Row]:
    """Return rows with ``differences`` to the best uniform choice by training seed; the prediction, which trains none,
    is compared with that of the first search of its limit."""
    found = []
    for row in rows:
        own = row.get("uniform_losses") or next((r["uniform_losses"] for r in rows if r["limit"] == row["limit"]
                                                 and "uniform_losses" in r), None)
        if own is not None and "test_losses" in row:
            differences = [row["test_losses"][s] - loss for s, loss in own.items()]
            known = paired_interval(differences)
            found.append({**row, "differences": differences, "difference": known.mean, "low": known.low,
                          "high": known.high})
    return found


def share_of(rows: Sequence[Row], name: str) -> tuple[float | None, Interval | None, int]:
    """Return the gain of an effort as a share of that of ``FULL``, its interval, and of how many searches that is.

    It is pooled over the searches of both; ``None`` where there are none or ``FULL`` gains nothing in them. The
    interval is of the pooled shares by training seed, with two of them or more, where ``FULL`` gains with each.
    """
    full = {(r["limit"], r["seed"]): r["differences"] for r in rows if r["effort"] == FULL}
    pairs = [(r["differences"], full[r["limit"], seed]) for r in rows if r["effort"] == name
             for seed in ([r["seed"]] if name != "instant" else range(SEEDS)) if (r["limit"], seed) in full]
    if not pairs:
        return None, None, 0
    own, whole = (np.sum([pair[i] for pair in pairs], axis=0) for i in (0, 1))
    share = float(own.sum() / whole.sum()) if whole.sum() < 0 else None
    each = paired_interval((own / whole).tolist()) if len(own) > 1 and (whole < 0).all() else None
    return share, each, len(pairs)


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Return what is asked of the efforts, pooled over limits and searches."""
    wanted, found = SEEDS * len(LIMITS), []
    for name, least in (("instant", INSTANT_SHARE), ("quick", QUICK_SHARE)):
        share, known, done = share_of(rows, name)
        sides = "" if known is None else f"; 95 % over training seeds: {known.low:.2f} to {known.high:.2f}"
        found.append(Target(f"{name}: gain over the best uniform choice, as a share of the gain of {FULL} ({done} of "
                            f"{wanted} searches{sides})", f">= {least:.0%}", share,
                            done >= wanted and share is not None and share >= least,
                            f"{done} of {wanted} searches are done"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search.real_efforts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", nargs="+", default=list(LIMITS), help="budgets of stored bytes")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--efforts", nargs="+", choices=list(EFFORTS), default=list(EFFORTS))
    parser.add_argument("--work", type=Path, default=Path("outputs/real-efforts"), help="where searches are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--summary", action="store_true", help="only summarise what is done")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    options = parser.parse_args(arguments)
    for text in [] if options.summary else options.limits:
        run_limit(text, options.seeds, options.efforts, options.work, options.overrides)
    rows = gains([row for folder in sorted(options.work.glob("*")) for row in rows_in(folder)])
    publish("search_efforts_real", targets_of(rows), rows,
            ("limit", "effort", "seed", "equivalents", "difference", "low", "high"), folder=options.out)


if __name__ == "__main__":
    main()
