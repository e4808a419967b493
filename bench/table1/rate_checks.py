"""What rests on calibrated learning rates, at other ones: what ours has on the best uniform choice within a limit, and
the two references that the gap lies between."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.table1.cells import OWN, Cell, CellResult, Say
from bench.table1.recipe import Recipe
from bench.table1.results import LORA_16, OURS, QLORA, ours_among
from bench.table1.session import Session
from bench.table1.statistics import Difference, difference
from qra_bo.report.text import MINUS, signed
from qra_bo.study.setting import training_seeds

UNIFORM = {name: name.replace("ours", "best_uniform") for name in OURS}
"""By the name of one of ours, the best uniform choice that has its bits and codes."""


def pairs(cells: Iterable[Cell]) -> list[tuple[Cell, Cell]]:
    """Ours and the best uniform choice, of every limit that has both."""
    within: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        if cell.limit is not OWN:
            within.setdefault(cell.limit.name, {})[cell.row.name] = cell
    chosen = [(rows, ours_among(rows)) for rows in within.values()]
    return [(rows[ours], rows[UNIFORM[ours]]) for rows, ours in chosen if ours is not None and UNIFORM[ours] in rows]


def references(cells: Iterable[Cell]) -> list[Cell]:
    """LoRA-16 and QLoRA in their own memory, where they are there."""
    return [cell for cell in cells if cell.limit is OWN and cell.row.name in (LORA_16, QLORA)]


def check_rates(session: Session, results: Sequence[CellResult], say: Say) -> list[dict[str, Any]]:
    """Train both sides of every pair at each of ``table1.rate_factors`` times their own rates, on the first
    ``table1.seeds`` unseen seeds, and compare them on the test split.

    A pair that came to one configuration, or of which one came to none, has nothing to check.

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
            ours, uniform = (_losses(session, recipe, factor * rate.lr_scale, seeds) for recipe, rate in sides)
            compared = difference(ours, uniform, set(seeds) - set(ours))
            checks.append({"limit": pair[0].limit.name, "ours": pair[0].row.name, "row": pair[1].row.name,
                           "factor": factor, "train_seeds": list(seeds), "ours_losses": [ours.get(s) for s in seeds],
                           "row_losses": [uniform.get(s) for s in seeds],
                           "ours_minus_row": None if compared is None else compared.to_json()})
            if session.results.made > made:
                say(_told(f"{pair[0].limit.name}: at {factor:g} times the rate ours {MINUS} best uniform", compared))
    return checks


def check_references(session: Session, results: Sequence[CellResult], say: Say) -> list[dict[str, Any]]:
    """Train LoRA-16 and QLoRA at each of ``table1.rate_factors`` times their own rates, on the first ``table1.seeds``
    unseen seeds, and compare them on the test split with themselves at their own rates: a gap whose ends hold is not
    the calibration's doing.

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
                say(_told(f"{r.cell.row.title}: at {factor:g} times its rate {MINUS} at its own", compared))
    return checks


def _seeds(session: Session) -> Sequence[int]:
    """Those unseen training seeds that every row has."""
    return training_seeds(session.config.seed, session.options.seeds)[1]


def _told(what: str, compared: Difference | None) -> str:
    return f"{what} {'not known' if compared is None else signed(compared.mean)}"


def _losses(session: Session, recipe: Recipe, lr_scale: float, seeds: Sequence[int]) -> dict[int, float]:
    """Test loss by training seed, of those that gave one."""
    events = {seed: session.evaluate(recipe, lr_scale, seed, "test") for seed in seeds}
    return {seed: float(e["loss"]) for seed, e in events.items() if e["loss"] is not None}
