"""Trainings of the final length: allocations that an effort finds for it and for a trial, and the best uniform choice.

    python -m bench.length.finds [--limits 54MB ...] [--steps 240] [--work FOLDER] [--out FOLDER] [--hours 2]
    python -m bench.length.finds --effort quick [...]
    python -m bench.length.finds --task gsm8k --gsm8k RECORDS.jsonl [...]
    python -m bench.length.finds --summary [--effort quick]

One text in bf16, six formats, codes by GPTQ. Within each limit ``effort=instant`` predicts one allocation for 24 steps
and one for 240, with what is learned from the other text alone; both cost a profile. (No prediction differs beyond
240.) With ``--effort quick`` quick searches with trials of 24 steps find them, in a study of its own. Both finds and
the best uniform choice are trained ``--steps`` steps on unseen seeds and evaluated on the test split. Learning rates
are those of ``adapter.lr_rule=by_length``, of a search times the factor that it calibrated, and for the uniform choice
the best at this length: for the plays by ``python -m bench.length.rates``, for GSM8K of those tried here. Processes may
do a limit each. The command may be stopped and started again.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.collect.task import DATA
from bench.length import rates
from bench.length.command import run, study_config, study_parser, text_overrides
from bench.length.plan import SEARCH_SEED, UNSEEN_SEEDS, uniform_choice
from bench.length.study import work
from bench.length.summary import difference
from bench.length.trials import NAME, Found, PlannedTrial, load
from bench.report import RESULTS, publish
from bench.search.play import ALONE
from bench.search.real_efforts import DEFAULTS, folder_name, found_by
from qra_bo.config import load_config
from qra_bo.memory.formats import parse_format
from qra_bo.searchers.structured.lengths import LONGEST as LONGEST_RATIO
from qra_bo.space import Allocation
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import write_json

FOLDER = RESULTS / "length"
FINDS = "finds.json"
LONGEST = rates.TRIAL * int(LONGEST_RATIO)
"""Most steps for which a prediction is another one than for fewer."""
KINDS = {"instant": "predicted", "quick": "searched"}
"""What an effort's finds are called, and the folder of their trials."""
RESULT = {effort: f"length_{kind}" for effort, kind in KINDS.items()}
"""Name of an effort's results."""
FOUND = {effort: (f"{kind} for {rates.TRIAL} steps", f"{kind} for {LONGEST} steps") for effort, kind in KINDS.items()}
"""By effort, names of the find for a trial's length and of that for the final one."""
UNIFORM, COST = "best uniform choice", ("equivalents", "trials")
SEEDS = {LONGEST: 5, 720: 3}
"""Unseen seeds by steps."""
BEST_UNIFORM = {"54MB": (3, 15), "uniform:4,16": (4, 16)}
"""Bits and rank of the best uniform choice after ``LONGEST`` steps of the plays, by limit."""
PLAYS, GSM8K = "plays", "gsm8k"
OTHER = {PLAYS: GSM8K, GSM8K: PLAYS}
FACTORS = (0.5, 1.0, 2.0)
"""Factors on the rate of ``by_length`` that are tried for a uniform choice of GSM8K, and twice the last if it is the
best."""
Row = dict[str, Any]


def find_both(task: str, limit: str, effort: str, folder: Path, overrides: Sequence[str]) -> dict[str, Row]:
    """Return what an effort finds within ``limit`` for both lengths, a search also with the factor on its learning rate
    and what it spent; its profile and trials are kept in ``folder``."""
    learned, finds = str(DATA / OTHER[task] / ALONE), {}
    for name, steps in zip(FOUND[effort], (rates.TRIAL, LONGEST), strict=True):
        config = load_config([*DEFAULTS, f"surrogate.rates={learned}", "search.length=final",
                              f"final.steps={steps}", *overrides, f"budget={limit}", "seed=0"])
        row = found_by(config, folder / f"{steps}", effort, learned)
        facts = {} if effort == "instant" else {key: row[key] for key in ("lr_scale", *COST)}
        finds[name] = {**Allocation.from_json(row).to_json(), **facts}
    return finds


def tuned_factor(steps: int, bits: int, rank: int) -> float | None:
    """Return the best factor on the rate of ``by_length`` of a uniform choice of the plays, where it was tuned."""
    return next((float(f"{row['best'] / row['by_length']:.3g}") for row in rates.rate_rows(load(rates.FILE))
                 if (row["steps"], row["bits"], row["rank"]) == (steps, bits, rank)), None)


def rate_trials(limit: str, steps: int, found: Found) -> list[PlannedTrial]:
    """Return the trials that tune the rate of GSM8K's uniform choice, as far as finished ones decide of them."""
    uniform = uniform_choice(*BEST_UNIFORM[limit]).allocation
    trials = [PlannedTrial(GSM8K, uniform, steps, SEARCH_SEED, "validation", f) for f in (*FACTORS, 2 * FACTORS[-1])]
    losses = [found[t.key]["loss"] for t in trials[:-1] if t.key in found]
    return trials if len(losses) == len(FACTORS) and losses[-1] == min(losses) else trials[:-1]


def uniform_factor(task: str, limit: str, steps: int, found: Found) -> float | None:
    """Return the tuned factor on the rate of a uniform choice; ``None`` before its trials are finished."""
    if task == PLAYS:
        return tuned_factor(steps, *BEST_UNIFORM[limit])
    trials = rate_trials(limit, steps, found)
    tried = {t.lr_scale: found[t.key]["loss"] for t in trials if t.key in found}
    return min(tried, key=lambda factor: tried[factor]) if len(tried) == len(trials) else None


def trials_of(task: str, limit: str, steps: int, finds: dict[str, Row],
              factor: float) -> Iterator[tuple[PlannedTrial, str]]:
    """Yield the trials on unseen seeds, all of one seed before the next; ``factor`` is of the uniform choice's rate."""
    uniform = uniform_choice(*BEST_UNIFORM[limit]).allocation
    choices = {UNIFORM: (uniform, factor), **{
        name: (Allocation.from_json(of), of.get("lr_scale", 1.0)) for name, of in finds.items()}}
    for seed in UNSEEN_SEEDS[:SEEDS[steps]]:
        for name, (allocation, scale) in choices.items():
            yield PlannedTrial(task, allocation, steps, seed, "test", scale), name


def wanted(task: str, limit: str, steps: int, finds: dict[str, Row],
           found: Found) -> tuple[PlannedTrial, str] | None:
    """Return the first trial that is missing, with its title.

    Raises:
        ConfigError: If a rate of the plays has to be tuned first.
    """
    factor = uniform_factor(task, limit, steps, found)
    if factor is None and task == PLAYS:
        raise ConfigError(f"the best uniform choice within {limit} has no learning rate for {steps} steps yet; first "
                          f"run python -m bench.length.rates")
    planned = ((t, UNIFORM) for t in rate_trials(limit, steps, found)) if factor is None else \
        trials_of(task, limit, steps, finds, factor)
    return next((one for one in planned if one[0].key not in found), None)


def rows_of(task: str, limit: str, steps: int, finds: dict[str, Row], found: Found) -> list[Row]:
    """Return mean losses, and paired differences of finds to the uniform choice and to the effort's for 24 steps."""
    losses: dict[str, dict[int, float]] = {}
    trials: dict[str, PlannedTrial] = {}
    factor = uniform_factor(task, limit, steps, found)
    for trial, name in () if factor is None else trials_of(task, limit, steps, finds, factor):
        trials[name] = trial
        if (event := found.get(trial.key)) is not None and event["loss"] is not None:
            losses.setdefault(name, {})[trial.train_seed] = event["loss"]
    rows = []
    for name, of in losses.items():
        allocation = trials[name].allocation
        row: Row = {"task": task, "limit": limit, "name": name, "steps": steps, "seeds": len(of),
                    "loss": fmean(of.values()), "bits": fmean(parse_format(f).bits for f in allocation.formats),
                    "rank": fmean(allocation.ranks), "factor": trials[name].lr_scale, **allocation.to_json(),
                    **{key: finds[name][key] for key in COST if key in finds.get(name, {})}}
        short = next((pair[0] for pair in FOUND.values() if name == pair[1]), name)
        for key, other in (("over_uniform", UNIFORM), ("over_short", short)):
            if name not in (UNIFORM, other) and (d := difference(of, losses.get(other, {}))) is not None:
                row[key] = d
        rows.append(row)
    return rows


def drawn_rows(step_tokens: int) -> list[Row]:
    """Return the published differences to the best uniform choice as the figure of the study takes them."""
    paths = [RESULTS / f"{result}.json" for result in RESULT.values()]
    rows = [row for path in paths if path.exists() for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    return [{"task": r["task"], "limit": r["limit"], "name": f"{r['name']}, {r['limit']}, bf16",
             "tokens": r["steps"] * step_tokens, "minus_best_uniform": r.get("over_uniform")} for r in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length.finds", __doc__)
    parser.add_argument("--task", choices=list(OTHER), default=PLAYS)
    parser.add_argument("--limits", nargs="+", choices=list(BEST_UNIFORM), default=list(BEST_UNIFORM))
    parser.add_argument("--steps", type=int, choices=list(SEEDS), default=LONGEST, help="optimiser steps")
    parser.add_argument("--effort", choices=list(KINDS), default="instant", help="whose finds are trained")
    parser.add_argument("--work", type=Path, default=Path("outputs/finds"),
                        help="where profiles and searches are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the trials, one an effort, text and limit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("overrides", nargs="*", help="of the predictions' configuration, such as sensitivity.path=FILE")
    options = parser.parse_args(arguments)
    task: str = options.task
    kept = options.out / KINDS[options.effort]
    if task == GSM8K and options.gsm8k is None and not options.summary:
        parser.error("--task gsm8k needs --gsm8k, the JSONL file of its records")

    def train(limit: str) -> None:
        text = text_overrides(task, options.gsm8k)
        folder = kept / task / folder_name(limit)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FINDS
        if not path.exists():
            write_json(path, find_both(task, limit, options.effort, options.work / KINDS[options.effort] / task /
                                       folder.name, [*text, *options.overrides]))
        finds = json.loads(path.read_text(encoding="utf-8"))
        config = study_config(task, options.gsm8k, ["dtype=bfloat16", "adapter.lr_rule=by_length"])
        work(lambda found: wanted(task, limit, options.steps, finds, found), folder / NAME, {task: config},
             options.trials, options.hours)

    def job() -> None:
        for limit in () if options.summary else options.limits:
            train(limit)
        rows: list[Row] = []
        for text in OTHER:
            for limit in BEST_UNIFORM:
                folder = kept / text / folder_name(limit)
                if (folder / FINDS).exists():  # else not begun
                    finds = json.loads((folder / FINDS).read_text(encoding="utf-8"))
                    found = load(folder / NAME)
                    rows += [row for steps in SEEDS for row in rows_of(text, limit, steps, finds, found)]
        publish(RESULT[options.effort], (), rows, ("task", "limit", "steps", "name", "bits", "rank", "seeds", "loss"),
                folder=options.results)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
