"""Comparisons at other learning rates than the calibrated ones: our row with the best uniform choice of every limit,
and the two references of the gap with themselves."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.table1.cells import OWN, Cell, CellResult, Say
from bench.table1.recipe import Recipe
from bench.table1.results import LORA_16, QLORA, QRA_BO, qra_bo_among
from bench.table1.session import Session
from bench.table1.statistics import Difference, difference
from qra_bo.study.setting import training_seeds
from qra_bo.utils.formatting import MINUS, signed

UNIFORM = {name: name.replace("qra_bo", "best_uniform") for name in QRA_BO}
"""The best uniform choice with the same bits and codes, by the name of our row."""


def pairs(cells: Iterable[Cell]) -> list[tuple[Cell, Cell]]:
    """Return our row and the best uniform choice of every limit that has both."""
    within: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if cell.limit is not OWN:
            within.setdefault(cell.limit.name, {})[cell.row.name] = cell
    chosen = [(rows, qra_bo_among(rows)) for rows in within.values()]
    return [(rows[own], rows[UNIFORM[own]]) for rows, own in chosen if own is not None and UNIFORM[own] in rows]


def references(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of LoRA-16 and QLoRA in their own memory."""
    return [cell for cell in cells if cell.limit is OWN and cell.row.name in (LORA_16, QLORA)]


def check_rates(session: Session, results: Sequence[CellResult], say: Say) -> list[dict[str, Any]]:
    """Train both sides of every pair at each of ``table1.rate_factors`` times their own rates, on the first
    ``table1.seeds`` unseen seeds, and compare them on the test split.

    Pairs with one configuration for both, or with none for one side, are left out.

    Raises:
        RunInterrupted: On a signal.
    """
    seeds, by_cell = _seeds(session), {r.cell: r for r in results}
    checks = []
    for pair in pairs(by_cell):
        sides = [(r.found.recipe, r.rate) for r in map(by_cell.__getitem__, pair) if r.found and r.rate]
        if len({recipe.key for recipe, _ in sides}) < 2:
            continue
        for factor in session.options.rate_factors:
            made = session.results.made
            own, uniform = (_losses(session, recipe, factor * rate.lr_scale, seeds) for recipe, rate in sides)
            compared = difference(own, uniform, set(seeds) - set(own))
            checks.append({"limit": pair[0].limit.name, "qra_bo": pair[0].row.name, "row": pair[1].row.name,
                           "factor": factor, "train_seeds": list(seeds), "qra_bo_losses": [own.get(s) for s in seeds],
                           "row_losses": [uniform.get(s) for s in seeds],
                           "qra_bo_minus_row": None if compared is None else compared.to_json()})
            if session.results.made > made:
                say(_line(f"{pair[0].limit.name}: at {factor:g} times the rate qra_bo {MINUS} best uniform", compared))
    return checks


def check_references(session: Session, results: Sequence[CellResult], say: Say) -> list[dict[str, Any]]:
    """Train LoRA-16 and QLoRA at each of ``table1.rate_factors`` times their own rates, on the first ``table1.seeds``
    unseen seeds, and compare their test losses with those at their own rates: if they hold, the gap does not come
    from the calibration.

    Raises:
        RunInterrupted: On a signal.
    """
    seeds, by_cell = _seeds(session), {r.cell: r for r in results}
    checks = []
    for r in map(by_cell.__getitem__, references(by_cell)):
        if r.found is None or r.rate is None:
            continue
        for factor in session.options.rate_factors:
            made = session.results.made
            losses = _losses(session, r.found.recipe, factor * r.rate.lr_scale, seeds)
            compared = difference(losses, r.losses, set(seeds) - set(losses))
            checks.append({"row": r.cell.row.name, "factor": factor, "train_seeds": list(seeds),
                           "losses": [losses.get(s) for s in seeds],
                           "minus_own": None if compared is None else compared.to_json()})
            if session.results.made > made:
                say(_line(f"{r.cell.row.title}: at {factor:g} times its rate {MINUS} at its own", compared))
    return checks


def _seeds(session: Session) -> Sequence[int]:
    """Return the unseen training seeds that every row has."""
    return training_seeds(session.config.seed, session.options.seeds)[1]


def _line(what: str, compared: Difference | None) -> str:
    return f"{what} {'unknown' if compared is None else signed(compared.mean)}"


def _losses(session: Session, recipe: Recipe, lr_scale: float, seeds: Sequence[int]) -> dict[int, float]:
    """Return the test losses by training seed, without failed trials."""
    events = {seed: session.evaluate(recipe, lr_scale, seed, "test") for seed in seeds}
    return {seed: float(e["loss"]) for seed, e in events.items() if e["loss"] is not None}
