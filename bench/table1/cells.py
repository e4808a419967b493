"""Cells of the table, one method within one limit each: found, calibrated, trained on every seed and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.table1.limits import FREE, Limit, parse_limits
from bench.table1.methods import ROWS, row_named
from bench.table1.rates import Rate, calibrate
from bench.table1.recipe import Recipe
from bench.table1.rows import Found, Row
from bench.table1.session import Session
from qra_bo.study.cost import FORWARD_SHARE
from qra_bo.study.setting import training_seeds
from qra_bo.trials import SequenceLosses, read_sequence_losses
from qra_bo.utils.errors import BudgetError, ConfigError

OWN = Limit("own memory", "peak", None, None, None)
"""Limit of the methods that take whatever memory they need."""
OF_A_ROW = (BudgetError, ConfigError)
"""User errors of a single row: nothing of it fits, or it needs calibration text. All others end the table: a model that
can't be read, a worker or a device that is lost."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    row: Row
    limit: Limit

    @property
    def name(self) -> str:
        return f"{self.row.title}, {self.limit.name}"


@dataclass
class CellResult:
    """Result of a cell so far.

    Args:
        cell: The cell.
        why: Why it has no result, or empty.
        found: The configuration, or ``None``.
        rate: The learning rate, or ``None``.
        search_cost: Training tokens before the finals: those of the method and of the learning-rate trials.
        trials: Events of the finals, by training seed.
        measured_bytes: In the limit's scope, or ``None``.
        scores: Scores of the first final's model at ``table1.tasks``.
    """

    cell: Cell
    why: str = ""
    found: Found | None = None
    rate: Rate | None = None
    search_cost: float = 0.0
    trials: dict[int, Any] = field(default_factory=dict)
    measured_bytes: int | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> dict[int, float]:
        """Test losses by training seed; failed finals have none."""
        return {seed: float(e["loss"]) for seed, e in self.trials.items() if e["loss"] is not None}

    @property
    def sequences(self) -> dict[int, SequenceLosses]:
        """Losses of every test sequence by training seed; none for trials that were made before they were kept."""
        return {seed: read_sequence_losses(e.get("sequence_losses", ()))
                for seed, e in self.trials.items()}

    @property
    def failed(self) -> tuple[int, ...]:
        """Training seeds of failed finals."""
        return tuple(seed for seed, e in self.trials.items() if e["loss"] is None)


def make_cells(limits: Sequence[str], methods: Sequence[str] | None) -> list[Cell]:
    """Return the cells in the order of the table: first those without a limit, then limit by limit.

    Raises:
        ConfigError: If a limit is malformed, or a method unknown or named for a limit that does not apply to it.
    """
    parsed = parse_limits(limits)
    for name in (*(methods or ()), *(m for limit in parsed for m in limit.methods or ())):
        row_named(name)
    problems = [f"table1.limits: {name} can't be compared within {limit.name!r}: "
                + ("its memory is fixed" if ROWS[name].takes(None) else "it needs a budget")
                for limit in parsed for name in limit.methods or () if not ROWS[name].takes(limit)]
    if problems:
        raise ConfigError(problems)
    chosen = [ROWS[name] for name in ROWS if methods is None or name in methods]
    cells = [Cell(row, OWN) for row in chosen if row.takes(None)]
    for limit in parsed:
        cells += [Cell(row, limit) for row in chosen
                  if row.takes(limit) and (limit.methods is None or row.name in limit.methods)]
    if not cells:
        raise ConfigError(f"table1.methods={list(methods or ())} and table1.limits={list(limits)} leave no row; "
                          f"methods: {', '.join(ROWS)}")
    return cells


def final_seeds(session: Session, row: Row) -> tuple[int, ...]:
    """Return the training seeds of a row's finals: unseen by any search, the first ones shared by all rows."""
    t = session.options
    return training_seeds(session.config.seed, t.key_seeds if row.key else t.seeds)[1]


def equivalents(session: Session, cells: Sequence[Cell]) -> float:
    """Return the most full-trial equivalents of the cells, as if nothing were done and none shared a configuration."""
    c, rates = session.config, max(len(session.config.calibrate.lr_scales), session.options.lr_trials)
    length = session.steps / c.fidelity.high
    return sum(cell.row.equivalents(session, cell.limit) + length * (rates + len(final_seeds(session, cell.row)))
               for cell in cells)


def work(session: Session, cell: Cell, say: Say) -> CellResult:
    """Work one cell to its end, or as far as its method gets.

    Raises:
        UserError: If no row of the table can go on.
        RunInterrupted: On a signal.
    """
    result = CellResult(cell)
    try:
        result.found = found(session, cell)
    except OF_A_ROW as error:
        result.why = " ".join(str(error).split())
        return result
    recipe, scope = result.found.recipe, cell.limit.scope
    result.rate, cost = learning_rate(session, cell, recipe, say)
    result.search_cost = result.found.cost + cost
    if result.rate is None:
        result.why = "no tried learning rate gave a loss"
        return result
    for seed in final_seeds(session, cell.row):
        made = session.results.made
        event = session.evaluate(recipe, result.rate.lr_scale, seed, "test")
        result.trials[seed] = event
        if session.results.made > made:
            say(f"test loss {_loss(event)}, training seed {len(result.trials)} of "
                f"{len(final_seeds(session, cell.row))}")
    if not result.losses:
        result.why = f"every final failed: {next(iter(result.trials.values()))['message']}"
        return result
    result.measured_bytes = session.measured_bytes(recipe, result.rate.lr_scale, session.train_seed, scope)
    result.scores = session.scores(recipe, result.rate.lr_scale, next(iter(result.losses)))
    return result


def found(session: Session, cell: Cell) -> Found:
    """Return the method's choice, from the journal if it is there."""

    def find() -> dict[str, Any]:
        made = cell.row.find(session, cell.limit)
        return {"recipe": made.recipe.to_json(), "cost": made.cost, "note": made.note}

    event = session.results.once("found", _key(session, cell), find)
    return Found(Recipe.from_json(event["recipe"]), float(event["cost"]), str(event["note"]))


def learning_rate(session: Session, cell: Cell, recipe: Recipe, say: Say) -> tuple[Rate | None, float]:
    """Return the row's learning rate by the rule that all rows share, and the cost of its trials (training tokens)."""
    cost = 0.0

    def trial(scale: float) -> float | None:
        nonlocal cost
        made = session.results.made
        event = session.evaluate(recipe, scale, session.train_seed, "validation")
        cost += event["training_tokens"] + FORWARD_SHARE * event["forward_tokens"]
        if session.results.made > made:
            say(f"learning rate times {scale:g}, validation loss {_loss(event)}")
        return None if event["loss"] is None else float(event["loss"])

    c = session.config
    scales = [s * cell.row.lr_centre for s in sorted(c.calibrate.lr_scales)]
    return calibrate(scales, max(len(scales), session.options.lr_trials), trial), cost


def is_free(limit: Limit) -> bool:
    """Whether a search's memory is not bounded."""
    return limit.name == FREE


def _key(session: Session, cell: Cell) -> str:
    return f"{cell.row.name}|{cell.limit.name}|{cell.row.signature(session)}"


def _loss(event: Any) -> str:
    return f"{event['state']} ({event['message']})" if event["loss"] is None else f"{event['loss']:.4f}"
