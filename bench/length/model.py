"""Models of training length: how well do early losses and a few whole curves predict what other allocations come to?

    python -m bench.length.model [--trials FILE.jsonl]

All models are given the early losses of all allocations and the whole curves of some, and predict the last loss of the
others. The data are the trials over 240 steps of the table of curves and of the length study, seen after 24 or 72 of
them or in runs of 24, and the tables of real trials over 24, seen half-way (at which the form of our models was
chosen). Scored is what a choice depends on, differences between allocations: the root mean square error of a difference
of two, the rank correlation, and the regret within a budget: the loss of the allocation that is predicted to be best of
those that fit, less that of the best, over the budgets that allocations fill. The regret of three is what is left where
the three that are predicted best are trained to the end. Every allocation counts once, at the best of its learning
rates. Allocations that are far behind when last seen are left out.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.collect.task import TASKS
from bench.learn_prior import SHIPPED
from bench.length import rates, table
from bench.length.curves import ALL_FORMATS, STEPS, Curves, Mask, of_best, of_rates, of_table, of_trials
from bench.length.exponents import exponents
from bench.length.extrapolation import (
    Fit,
    carried_rates,
    changed_rates,
    known_alone,
    last_value,
    power_law,
    rates_after,
    shrunk_changed_rates,
)
from bench.length.gaussian import latent_kronecker, multi_fidelity
from bench.length.trials import NAME, load
from bench.report import RESULTS, Target, publish
from qra_bo.searchers.structured.rates import NAMES
from qra_bo.searchers.structured.transfer import load_prior
from qra_bo.sensitivity.io import load_profile
from qra_bo.space import FloatArray, IntArray
from qra_bo.study.intervals import spearman

LAST, CARRIED = "last value seen", "exchange rates carried as a search does"
OURS_PLAIN, OURS = "change of the exchange rates", "change of the exchange rates, early loss shrunk"
LIBRARY = ("LatentKroneckerGP", "SingleTaskMultiFidelityGP")
TABLE = "plays, table of curves"
BIT = "one_bit"
"""Loss of 3 bits everywhere over that of 4 (nats)."""
Model = Callable[[Curves, int], FloatArray]
MODELS: Mapping[str, Model] = {
    LAST: last_value, "power law, exponent of all": power_law, CARRIED: carried_rates,
    "exchange rates of the known curves alone": known_alone,
    OURS_PLAIN: changed_rates, OURS: shrunk_changed_rates, LIBRARY[0]: latent_kronecker, LIBRARY[1]: multi_fidelity}
LEAST = 6
"""Allocations below which nothing is said."""
NEAR = 0.3
"""Nats behind the best beyond which an allocation is left out, by the last loss that all models see."""
FOLDS, SPLITS, FEW = 8, 4, 8
"""Folds of *each in turn* (single allocations up to so many), random splits of the others, and curves known in the last
of them."""
IN_TURN, HALF = "each in turn", "half known"
DRAWS = 1000
"""Bootstrap samples of allocations behind an interval of 95 %."""
NOTHING = dict.fromkeys(("rmse", "over_last_value", "spearman", "regret", "regret_of_3"))
COLUMNS = ("data", "seen", "protocol", "model", "allocations", "rmse", "over_last_value", "spearman",
           "spearman_better_half", "regret", "regret_of_3", "step", *NAMES, BIT)
Row = dict[str, Any]


def rounds(curves: Curves) -> dict[str, list[list[Mask]]]:
    """Return the rows whose ends are hidden: by protocol, for each round that is scored, the masks (``n``) that are
    predicted one after another. Rows of one allocation are hidden together."""
    numbers = np.unique(curves.allocation)
    random = np.random.default_rng(0)

    def rows(allocations: IntArray) -> Mask:
        return np.isin(curves.allocation, allocations)

    order, folds = random.permutation(numbers), min(FOLDS, len(numbers))
    found = {IN_TURN: [[rows(order[k::folds]) for k in range(folds)]],
             HALF: [[rows(random.permutation(numbers)[len(numbers) // 2:])] for _ in range(SPLITS)]}
    if len(numbers) >= FEW + LEAST:
        found[f"{FEW} known"] = [[rows(random.permutation(numbers)[FEW:])] for _ in range(SPLITS)]
    return found


def predict(curves: Curves, seen: int, model: Model, masks: Sequence[Mask]) -> FloatArray:
    """Return the last losses as predicted where they are hidden, ``n``, NaN elsewhere and where a model found none; the
    level is that of the known rows."""
    found = np.full(len(curves.losses), np.nan)
    for hidden in masks:
        predicted = model(curves.hiding(hidden, seen), seen)
        found[hidden] = (predicted + np.mean(curves.losses[~hidden, -1] - predicted[~hidden]))[hidden]
    return found


def scores(predicted: FloatArray, losses: FloatArray, stored: FloatArray) -> dict[str, float | None]:
    """Score ``m`` predictions: error of a difference (nats) and rank correlation, also of the better half, and regrets
    within budgets on the ``stored`` bytes."""
    better = losses <= np.median(losses)
    return {"rmse": difference_error(predicted - losses), "spearman": spearman(predicted.tolist(), losses.tolist()),
            "regret": regret(predicted, losses, stored, 1), "regret_of_3": regret(predicted, losses, stored, 3),
            "rmse_better_half": difference_error((predicted - losses)[better]),
            "spearman_better_half": spearman(predicted[better].tolist(), losses[better].tolist())}


def regret(predicted: FloatArray, losses: FloatArray, stored: FloatArray, trained: int) -> float | None:
    """Return the least loss of the ``trained`` allocations that are predicted best of those within a budget, less the
    least of all within it (nats): the mean over the budgets that ``m`` allocations fill and ``LEAST`` fit."""
    found = []
    for fits in (stored <= budget for budget in np.unique(stored)):
        if fits.sum() >= LEAST:
            best = predicted[fits].argsort(kind="stable")[:trained]
            found.append(losses[fits][best].min() - losses[fits].min())
    return float(np.mean(found)) if found else None


def difference_error(errors: FloatArray) -> float:
    """Return the root mean square error of the difference of two predictions, over all pairs of ``m``."""
    return float(np.sqrt(2.0) * errors.std(ddof=1))


def intervals(errors: FloatArray, others: FloatArray) -> dict[str, float]:
    """Return bootstrap intervals of ``difference_error`` and of its ratio to that of ``others`` (``m`` each)."""
    drawn = np.random.default_rng(0).integers(len(errors), size=(DRAWS, len(errors)))
    own, other = (np.sqrt(2.0) * each[drawn].std(axis=1, ddof=1) for each in (errors, others))
    return {f"{name}_{side}": float(np.quantile(values, q))
            for name, values in (("rmse", own), ("over_last_value", own / np.maximum(other, 1e-12)))
            for side, q in (("low", 0.025), ("high", 0.975))}


def prediction_rows(curves: Curves, seen: int) -> Iterator[Row]:
    """Yield the scores of all models from the losses up to column ``seen``, by protocol; null with fewer than ``LEAST``
    allocations."""
    early = curves.losses[:, seen]
    curves = curves.rows(early <= np.min(early, initial=np.inf) + NEAR)
    final, counted = curves.losses[:, -1], curves.best_rates()
    base = {"part": "prediction", "data": curves.name, "seen": curves.steps[seen], "of_steps": curves.steps[-1],
            "allocations": curves.n_allocations, "trials": len(final), "noise": curves.noise}
    if curves.n_allocations < LEAST:
        yield from ({**base, "protocol": IN_TURN, "model": name, **NOTHING, "why": _too_few(curves.n_allocations)}
                    for name in MODELS)
        return
    for protocol, masks in rounds(curves).items():
        chosen = [np.any(part, axis=0) & counted for part in masks]
        losses, stored = ([values[rows] for rows in chosen] for values in (final, curves.stored))
        found = {name: [predict(curves, seen, model, part)[rows] for part, rows in zip(masks, chosen, strict=True)]
                 for name, model in MODELS.items()}
        for name, predicted in found.items():
            yield {**base, "protocol": protocol, "model": name,
                   **_scored(predicted, found[LAST], losses, stored, protocol == IN_TURN)}


def _scored(predicted: Sequence[FloatArray], last: Sequence[FloatArray], losses: Sequence[FloatArray],
            stored: Sequence[FloatArray], whole: bool) -> Row:
    """Return the mean scores over the rounds, and with the ``whole`` in one, intervals."""
    if any(np.isnan(p).any() for p in predicted):
        return {**NOTHING, "why": "a fit failed"}
    each = [scores(p, y, b) for p, y, b in zip(predicted, losses, stored, strict=True)]
    own, other = (statistics.fmean(difference_error(p - y) for p, y in zip(part, losses, strict=True))
                  for part in (predicted, last))
    means = {key: _mean([s[key] for s in each]) for key in each[0]}
    return {**means, "over_last_value": own / other if other else None,
            **(intervals(predicted[0] - losses[0], last[0] - losses[0]) if whole else {})}


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; ``None`` where a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def rates_rows(name: str, groups: Sequence[Curves]) -> Iterator[Row]:
    """Yield the exchange rates after every step with their standard errors, from all trials of the ``groups``."""
    allocations = {int(a) for curves in groups for a in curves.allocation}
    steps = groups[0].steps
    base = {"part": "exchange rates", "data": name, "allocations": len(allocations),
            "trials": sum(len(curves.losses) for curves in groups)}
    if len(allocations) < LEAST:
        yield from ({**base, "step": step, **dict.fromkeys((*NAMES, BIT)), "why": _too_few(len(allocations))}
                    for step in steps)
        return
    yield from ({**base, "step": step, **_worth(rates_after(groups, column), groups[0].bit)}
                for column, step in enumerate(steps))


def _worth(fitted: Fit, bit: FloatArray) -> dict[str, float]:
    """Return the exchange rates, and the loss of 3 bits everywhere over that of 4 (nats), with standard errors."""
    directions = {**dict(zip(NAMES, np.eye(3), strict=True)), BIT: bit}
    covariance = fitted.covariance[:3, :3]
    return {name + suffix: float(value) for name, direction in directions.items()
            for suffix, value in (("", direction @ fitted.coefficients[:3]),
                                  ("_se", np.sqrt(direction @ covariance @ direction)))}


def _too_few(allocations: int) -> str:
    return f"{allocations} allocations; nothing is said of fewer than {LEAST}"


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Our error against the last value's, and against the better of the library's models, each left out in turn."""
    found = []
    scored = [r for r in rows if r["part"] == "prediction" and r["protocol"] == IN_TURN]
    for data, seen in dict.fromkeys((r["data"], r["seen"]) for r in scored):
        of = {r["model"]: r for r in scored if (r["data"], r["seen"]) == (data, seen)}
        ours, steps = of[OURS]["rmse"], of[OURS]["of_steps"]
        for what, names in (("the last value's", (LAST,)), ("that of the rates as a search carries them", (CARRIED,)),
                            ("the better of the library's models'", LIBRARY)):
            others = [of[name]["rmse"] for name in names if of[name]["rmse"] is not None]
            known = ours is not None and bool(others)
            value = ours / min(others) if known else None
            found.append(Target(f"{data}: error of a difference after {steps} steps as predicted after {seen}, over "
                                f"{what}", "< 1", value, value is not None and value < 1,
                                "" if known else of[OURS].get("why", "a fit failed")))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.length.model", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, default=RESULTS / "length" / NAME, help="trials of the length study")
    parser.add_argument("--table", type=Path, default=table.FILE, help="trials of the table of curves")
    parser.add_argument("--rates", type=Path, default=rates.FILE, help="trials of the study of learning rates")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    groups, runs = of_trials(options.trials), of_best(options.trials)
    tables = [of_table(task) for task in TASKS]
    curves = max(groups, key=lambda group: group.n_allocations)
    profile = load_profile(ALL_FORMATS)
    many, whole = of_trials(options.table, profile, TABLE)[0], of_best(options.table, profile, TABLE)
    rows = [row for data, seen in [(many, 0), (many, 1), (whole, 0), (curves, 0), (curves, 1), (runs, 0),
                                   *((one, 0) for one in tables)]
            for row in prediction_rows(data, seen)]
    rows += [row for name, data in ((TABLE, [many]), (f"plays, {STEPS} steps", groups),
                                    *((c.name, [c]) for c in (whole, runs, *tables)))
             for row in rates_rows(name, data)]
    each = [[c] for c in (whole, runs, of_rates(load(options.rates))) if c.n_allocations > 1]
    for data in ([c for (c,) in each], *each):
        rows.append({"part": "exponents", "data": "; ".join(c.name for c in data), "prior": SHIPPED,
                     **asdict(exponents(data, load_prior(SHIPPED).rates))})
    publish("length_model", targets_of(rows), rows, COLUMNS, threads=1, folder=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
