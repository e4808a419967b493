"""Planned cost of a table: trials exactly or as an upper bound, time roughly."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.table1.cells import Cell, final_seeds
from bench.table1.published import calibration_and_baselines, proposals_left
from bench.table1.rate_checks import pairs, references
from bench.table1.recipe import ALTERNATIONS
from bench.table1.rows_searched import Searched
from bench.table1.session import Session
from qra_bo.report.tables import PlanRow

TRIALS_USUALLY = 0.5
"""Average share of the learning-rate trials beyond the first ones that is needed."""
DECOMPOSE_SECONDS = 1.7e-7
"""Seconds to quantise and decompose one weight on a CPU (0.15 s for 1,536 x 576 on one thread)."""
OPEN_SECONDS, EVALUATION_SECONDS = 5.0, 0.4
"""Fixed seconds on a CPU: start of a row's oracle process; switch, files and journal of a trial."""


@dataclass(frozen=True)
class CellPlan:
    """Cost of a cell that shares its configuration with no other.

    Args:
        search: Full-trial equivalents of finding its configuration, less those of earlier searches that it shares.
        trials: Full-trial equivalents of its learning-rate trials.
        finals: Full-trial equivalents of its finals.
        passes: Number of passes that quantise and decompose all weights, which cost time but no tokens.
    """

    search: float
    trials: float
    finals: float
    passes: int

    @property
    def equivalents(self) -> float:
        return self.search + self.trials + self.finals


def plan_cells(session: Session, cells: Sequence[Cell]) -> list[CellPlan]:
    """Return the cost of every cell. Profile, calibration and uniform baselines that searches share count once, with
    the first."""
    c = session.config
    first, length = len(c.calibrate.lr_scales), session.steps / c.fidelity.high
    trials = length * (first + TRIALS_USUALLY * max(0, session.options.lr_trials - first))
    plans = []
    begun: set[tuple[str, bool, bool]] = set()
    for cell in cells:
        n = cell.row.equivalents(session, cell.limit)
        if isinstance(cell.row, Searched):
            n = _of_its_own(session, cell.row, n, begun, cell.limit.name)
        plans.append(CellPlan(n, trials, length * len(final_seeds(session, cell.row)), _passes(session, cell)))
    return plans


def plan_rows(session: Session, cells: Sequence[Cell], seconds: float | None) -> list[PlanRow]:
    """Return the parts of the work, as if nothing were done and no rows shared a configuration.

    Args:
        session: Of the table.
        cells: Of the table.
        seconds: Of a training token; ``None`` if unknown.
    """
    c, o, plans = session.config, session.options, plan_cells(session, cells)
    tokens = session.setting.full_trial_tokens
    parts: dict[str, float] = {}
    for cell, plan in zip(cells, plans, strict=True):
        what = f"{cell.limit.name}: {'searches' if isinstance(cell.row, Searched) else 'other methods'}"
        parts[what] = parts.get(what, 0.0) + plan.search
    first = len(c.calibrate.lr_scales)
    parts[f"learning rates of {len(cells)} rows ({first} to {max(first, o.lr_trials)} each)"] = \
        sum(plan.trials for plan in plans)
    finals = sum(len(final_seeds(session, cell.row)) for cell in cells)
    parts[f"{finals} finals of {session.steps} steps"] = sum(plan.finals for plan in plans)
    at_other_rates = len(o.rate_factors) * (2 * len(pairs(cells)) + len(references(cells))) * o.seeds
    parts[f"{at_other_rates} finals at other learning rates"] = at_other_rates * session.steps / c.fidelity.high
    rows = [PlanRow(what, n * tokens, None if seconds is None else n * (seconds * tokens + EVALUATION_SECONDS))
            for what, n in parts.items() if n]
    if seconds is not None:
        rows.append(PlanRow(f"{len(cells)} rows begun", 0.0, len(cells) * OPEN_SECONDS))
    passes = sum(plan.passes for plan in plans)
    if passes and seconds is not None:
        what = f"{passes} passes of decompositions (LoftQ, LQ-LoRA)"
        rows.append(PlanRow(what, 0.0, passes * _pass_seconds(session)))
    return rows


def weights(session: Session, cells: Sequence[Cell], seconds: float | None) -> list[float]:
    """Return the rough seconds of every cell; without ``seconds``, its full-trial equivalents."""
    if seconds is None:
        return [plan.equivalents for plan in plan_cells(session, cells)]
    each = seconds * session.setting.full_trial_tokens + EVALUATION_SECONDS
    return [OPEN_SECONDS + plan.equivalents * each + plan.passes * _pass_seconds(session)
            for plan in plan_cells(session, cells)]


def _pass_seconds(session: Session) -> float:
    return DECOMPOSE_SECONDS * session.setting.memory.spec.linear_numel


def _of_its_own(session: Session, row: Searched, equivalents: float, begun: set[tuple[str, bool, bool]],
                limit: str) -> float:
    """Return the full-trial equivalents of a search, less those that an earlier search with the same limit, codes and
    ladder of bits shares; adds it to ``begun``."""
    group = limit, row.gptq, row.finer
    own = max(0.0, min(proposals_left(session.config), equivalents - calibration_and_baselines(session.config)))
    n = own if group in begun else equivalents
    begun.add(group)
    return n


def _passes(session: Session, cell: Cell) -> int:
    c = session.config
    per_row = {"loftq": ALTERNATIONS,
               "lq_lora": session.options.rank_choices * (len(c.format_names) + ALTERNATIONS)}
    return per_row.get(cell.row.name, 0)
