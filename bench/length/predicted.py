"""Trainings of the final length: allocations that are predicted for it, for a trial, and the best uniform choice.

    python -m bench.length.predicted [--limits 54MB ...] [--work FOLDER] [--out FOLDER] [--hours 2] [--summary]

The plays in bf16, six formats, codes by GPTQ. Within each limit ``effort=instant`` predicts one allocation for 24 steps
and one for ``STEPS``, with what is learned from GSM8K alone; both cost a profile. They and the best uniform choice are
trained ``STEPS`` steps on unseen seeds and evaluated on the test split. Learning rates are those of
``adapter.lr_rule=by_length``, and for the uniform choice the best of three that were tried for it at this length
(``python -m bench.length.rates``). Processes may do a limit each. The command may be stopped and started again.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.length import rates
from bench.length.command import run, study_config, study_parser
from bench.length.plan import UNSEEN_SEEDS, uniform_choice
from bench.length.study import work
from bench.length.summary import difference
from bench.length.trials import NAME, Found, PlannedTrial, load
from bench.report import RESULTS, publish
from bench.search.real_efforts import DEFAULTS, folder_name, found_by
from qra_bo.config import load_config
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.utils.files import write_json

FOLDER = RESULTS / "length" / "predicted"
FINDS = "finds.json"
STEPS = 240
SHORT, LONG, UNIFORM = f"predicted for {rates.TRIAL} steps", f"predicted for {STEPS} steps", "best uniform choice"
BEST_UNIFORM = {"54MB": (3, 15), "uniform:4,16": (4, 16)}
"""Bits and rank of the best uniform choice after ``STEPS`` steps, by limit."""
Row = dict[str, Any]


def predicted(limit: str, folder: Path, overrides: Sequence[str]) -> dict[str, Row]:
    """Return what ``effort=instant`` predicts within ``limit`` for both lengths; its profile is kept in ``folder``."""
    found = {}
    for name, steps in ((SHORT, rates.TRIAL), (LONG, STEPS)):
        config = load_config([*DEFAULTS, "search.length=final", f"final.steps={steps}", *overrides, f"budget={limit}",
                              "seed=0"])
        row = found_by(config, folder / f"{steps}", "instant")
        found[name] = Allocation.from_json(row).to_json()
    return found


def tuned_factor(bits: int, rank: int) -> float:
    """Return the best factor on the rate of ``by_length`` of a uniform choice after ``STEPS`` steps."""
    (row,) = (r for r in rates.rate_rows(load(rates.FILE)) if (r["steps"], r["bits"], r["rank"]) == (STEPS, bits, rank))
    return float(f"{row['best'] / row['by_length']:.3g}")


def trials_of(limit: str, finds: dict[str, Row]) -> Iterator[tuple[PlannedTrial, str]]:
    """Yield the trials of a limit, all of one seed before the next."""
    uniform = uniform_choice(*BEST_UNIFORM[limit]).allocation
    choices = {UNIFORM: (uniform, tuned_factor(*BEST_UNIFORM[limit])),
               **{name: (Allocation.from_json(of), 1.0) for name, of in finds.items()}}
    for seed in UNSEEN_SEEDS:
        for name, (allocation, factor) in choices.items():
            yield PlannedTrial("plays", allocation, STEPS, seed, "test", factor), name


def rows_of(limit: str, finds: dict[str, Row], found: Found) -> list[Row]:
    """Return mean losses, and paired differences of predictions to the uniform choice and to that for 24 steps."""
    losses: dict[str, dict[int, float]] = {}
    trials: dict[str, PlannedTrial] = {}
    for trial, name in trials_of(limit, finds):
        trials[name] = trial
        if (event := found.get(trial.key)) is not None and event["loss"] is not None:
            losses.setdefault(name, {})[trial.train_seed] = event["loss"]
    rows = []
    for name, of in losses.items():
        allocation = trials[name].allocation
        row: Row = {"limit": limit, "name": name, "steps": STEPS, "seeds": len(of), "loss": fmean(of.values()),
                    "bits": fmean(parse_format(f).bits for f in allocation.formats),
                    "rank": fmean(allocation.ranks), "factor": trials[name].lr_scale, **allocation.to_json()}
        for key, other in (("over_uniform", UNIFORM), ("over_short", SHORT)):
            if name not in (UNIFORM, other) and (d := difference(of, losses.get(other, {}))) is not None:
                row[key] = d
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length.predicted", __doc__)
    parser.add_argument("--limits", nargs="+", choices=list(BEST_UNIFORM), default=list(BEST_UNIFORM))
    parser.add_argument("--work", type=Path, default=Path("outputs/predicted"), help="where profiles are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the trials, one a limit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("overrides", nargs="*", help="of the predictions' configuration, such as sensitivity.path=FILE")
    options = parser.parse_args(arguments)
    config = study_config("plays", None, ["dtype=bfloat16", "adapter.lr_rule=by_length"])

    def job() -> None:
        rows: list[Row] = []
        for limit in options.limits:
            folder = options.out / folder_name(limit)
            if not options.summary:
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / FINDS).exists():
                    write_json(folder / FINDS, predicted(limit, options.work / folder.name, options.overrides))
            elif not (folder / FINDS).exists():  # not begun
                continue
            finds = json.loads((folder / FINDS).read_text(encoding="utf-8"))

            def following(found: Found, limit: str = limit, finds: dict[str, Row] = finds,
                          ) -> tuple[PlannedTrial, str] | None:
                return next((one for one in trials_of(limit, finds) if one[0].key not in found), None)

            if not options.summary:
                work(following, folder / NAME, {"plays": config}, options.trials, options.hours)
            rows += rows_of(limit, finds, load(folder / NAME))
        publish("length_predicted", (), rows, ("limit", "name", "bits", "rank", "seeds", "loss"),
                folder=options.results)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
