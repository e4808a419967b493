"""Effect of the choice of codes: one uniform choice with round-to-nearest codes, with GPTQ, and on the 16-bit base.

    python -m bench.codes [--format nf4] [--rank 16] [--seeds 5] [--work outputs/codes] [overrides ...]

All are trained at the configured learning rate, on the same unseen seeds, and evaluated on the test split. Trials are
kept in ``--work``; the same command resumes them.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import RESULTS, Target, publish
from bench.sessions import table_session
from bench.table1.recipe import Recipe
from bench.table1.session import Session
from bench.table1.statistics import difference
from qra_bo.config import load_config
from qra_bo.space import uniform
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.setting import training_seeds

NEAREST, GPTQ, DENSE = "rtn", "gptq", "16 bits"
Row = dict[str, Any]


def measure(session: Session, fmt: str, rank: int, seeds: Sequence[int]) -> list[Row]:
    """Test losses by training seed of the three."""
    rows = []
    for codes, name, tokens in ((NEAREST, fmt, None), (GPTQ, fmt, session.gptq_tokens), (DENSE, "fp16", None)):
        recipe = Recipe(uniform(session.space.n_units, name, rank), session.config.adapter.init, gptq_tokens=tokens)
        losses = {s: session.evaluate(recipe, 1.0, s, "test")["loss"] for s in seeds}
        known = [loss for loss in losses.values() if loss is not None]
        rows.append({"task": session.config.data.name, "codes": codes, "format": name, "rank": rank,
                     "test_losses": losses, "mean": float(np.mean(known)) if known else None})
    return rows


def compared(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Every row with its paired difference from the round-to-nearest codes."""
    nearest = next(r["test_losses"] for r in rows if r["codes"] == NEAREST)
    found = []
    for r in rows:
        versus = None if r["codes"] == NEAREST else difference(r["test_losses"], nearest)
        found.append({**r, **({} if versus is None else {"difference": versus.mean, "low": versus.low,
                                                         "high": versus.high, "verdict": versus.verdict})})
    return found


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Return whether GPTQ's codes are better than round-to-nearest codes."""
    chosen = next(r for r in rows if r["codes"] == GPTQ)
    what = f"loss with GPTQ's codes less that with round-to-nearest codes, {chosen['task']}"
    if chosen.get("difference") is None:
        return [Target(what, "< 0", None, False, "too few losses to compare")]
    return [Target(what, "< 0, its interval too", float(chosen["difference"]), chosen["verdict"] == "better")]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.codes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="nf4")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help="unseen training seeds")
    parser.add_argument("--work", type=Path, default=Path("outputs/codes"), help="folder of the trials")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options, overrides = parser.parse_known_args(argv)
    config = load_config(["budget=uniform:4,16", "display=none", "dtype=bfloat16", "quantizer.rounding=rtn",
                          *overrides])
    with table_session(config, options.work) as session:
        rows = compared(measure(session, options.format, options.rank, training_seeds(config.seed, options.seeds)[1]))
    publish(f"codes_{config.data.name}", targets_of(rows), rows, ["task", "codes", "format", "rank", "mean",
                                                                  "difference", "low", "high"], folder=options.out)


if __name__ == "__main__":
    main()
