"""What a table will take, before it starts: evaluations exactly or at most, time roughly."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.table1.cells import Cell, final_seeds
from bench.table1.published import calibration_and_baselines, proposals_left
from bench.table1.rate_checks import pairs, references
from bench.table1.rows_searched import Searched
from bench.table1.search import search_config
from bench.table1.session import Session
from qra_bo.report.tables import PlanRow

TRIALS_USUALLY = 0.5
"""Of the learning-rate trials beyond the first ones, how many are taken on average."""
DECOMPOSE_SECONDS = 1.7e-7
"""Of one weight, quantised once and decomposed once on a CPU (0.15 s for 1,536 x 576 on one thread)."""
OPEN_SECONDS, EVALUATION_SECONDS = 5.0, 0.4
"""On a CPU, whatever the model: a row's oracle in its own process, and an evaluation's switch, files and journal. With
a tiny model they are nearly all there is."""


def full_trial_tokens(session: Session) -> float:
    """Training tokens of one high-fidelity evaluation."""
    c = session.config
    return c.fidelity.high * c.train.batch * c.train.length + c.eval.tokens / 3


@dataclass(frozen=True)
class CellPlan:
    """What a cell takes where no other comes to its configuration.

    Args:
        search: High-fidelity equivalents of finding its configuration, without what a search before it has done.
        trials: Those of its learning-rate trials.
        finals: Those of its finals.
        passes: How often all weights are quantised and decomposed, which costs time and no token.
    """

    search: float
    trials: float
    finals: float
    passes: int

    @property
    def equivalents(self) -> float:
        return self.search + self.trials + self.finals


def plan_cells(session: Session, cells: Sequence[Cell]) -> list[CellPlan]:
    """Of every cell. Profile, calibration and uniform baselines that searches share are counted once, with the first."""
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
    """Parts of the work as if nothing of it were done. Rows that come to one configuration share its trials and finals,
    and take less than this.

    Args:
        session: The table's.
        cells: Of the table.
        seconds: Of a training token; ``None`` where that is not known.
    """
    c, plans = session.config, plan_cells(session, cells)
    tokens = full_trial_tokens(session)
    parts: dict[str, float] = {}
    for cell, plan in zip(cells, plans, strict=True):
        what = f"{cell.limit.name}: {'searches' if isinstance(cell.row, Searched) else 'other methods'}"
        parts[what] = parts.get(what, 0.0) + plan.search
    first = len(c.calibrate.lr_scales)
    parts[f"learning rates of {len(cells)} rows ({first} to {max(first, session.options.lr_trials)} each)"] = \
        sum(plan.trials for plan in plans)
    finals = sum(len(final_seeds(session, cell.row)) for cell in cells)
    parts[f"{finals} finals of {session.steps} steps"] = sum(plan.finals for plan in plans)
    at_other_rates = len(session.options.rate_factors) * (2 * len(pairs(cells)) + len(references(cells))) * session.options.seeds
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
    """Rough time of every cell as ``plan_rows`` has it; without ``seconds``, as on a GPU, whose speed nothing is known
    of, only to compare cells with one another."""
    if seconds is None:
        return [plan.equivalents for plan in plan_cells(session, cells)]
    each = seconds * full_trial_tokens(session) + EVALUATION_SECONDS
    return [OPEN_SECONDS + plan.equivalents * each + plan.passes * _pass_seconds(session)
            for plan in plan_cells(session, cells)]


def _pass_seconds(session: Session) -> float:
    return DECOMPOSE_SECONDS * session.setting.memory.spec.linear_numel


def _of_its_own(session: Session, row: Searched, equivalents: float, begun: set[tuple[str, bool, bool]],
                limit: str) -> float:
    """High-fidelity equivalents of a search that none before it within ``limit``, with its codes and ladder of bits,
    has done; ``begun`` is told of it."""
    group = limit, row.gptq, row.finer
    own = max(0.0, min(proposals_left(session.config), equivalents - calibration_and_baselines(session.config)))
    n = own if group in begun else equivalents
    begun.add(group)
    return n


def _passes(session: Session, cell: Cell) -> int:
    c = session.config
    per_row = {"loftq": c.adapter.iterations,
               "lq_lora": session.options.rank_choices * (len(c.format_names) + c.adapter.iterations)}
    return per_row.get(cell.row.name, 0)


def check_searches(session: Session, cells: Sequence[Cell]) -> None:
    """Make every search's configuration, so that what is wrong with one is said before anything is trained.

    Raises:
        ConfigError: With all problems of one.
    """
    for cell in cells:
        if isinstance(cell.row, Searched):
            search_config(session, cell.limit, session.config.method.name, {}, {})
