"""What a table will take, before it starts: evaluations exactly or at most, time roughly."""

from collections.abc import Sequence

from qra_bo.report.tables import PlanRow
from qra_bo.run import engine_settings, token_seconds
from qra_bo.table1.cells import Cell, final_seeds
from qra_bo.table1.published import calibration_and_anchors, proposals_left
from qra_bo.table1.rows_searched import Searched
from qra_bo.table1.search import search_config
from qra_bo.table1.session import Session

TRIALS_USUALLY = 0.5
"""Of the learning-rate trials beyond the first ones, how many are taken on average."""
DECOMPOSE_SECONDS = 1.7e-7
"""Of one weight, quantised once and decomposed once on a CPU (0.15 s for 1,536 x 576 on one thread)."""
OPEN_SECONDS, EVALUATION_SECONDS = 5.0, 0.4
"""On a CPU, whatever the model: a row's oracle in its own process, and an evaluation's switch, files and journal. With
a tiny model they are nearly all there is."""


def equivalent_tokens(session: Session) -> float:
    """Training tokens of one high-fidelity evaluation."""
    c = session.config
    return c.fidelity.high * c.train.batch * c.train.length + c.eval.tokens / 3


def plan_rows(session: Session, cells: Sequence[Cell]) -> list[PlanRow]:
    """Parts of the work as if nothing of it were done. Profile, calibration and anchors that searches share are counted
    once; rows that come to one configuration share its trials and finals, and take less than this."""
    c = session.config
    tokens = equivalent_tokens(session)
    seconds = token_seconds(c, session.setting)
    first = len(c.calibrate.lr_scales)
    trials = first + TRIALS_USUALLY * max(0, c.table1.lr_trials - first)
    length = session.steps / c.fidelity.high
    parts: dict[str, float] = {}
    begun: set[tuple[str, bool, bool]] = set()
    for cell in cells:
        what, n = f"{cell.limit.name}: other methods", cell.row.equivalents(session, cell.limit)
        if isinstance(cell.row, Searched):
            what, n = f"{cell.limit.name}: searches", _of_its_own(session, cell.row, n, begun, cell.limit.name)
        parts[what] = parts.get(what, 0.0) + n
    parts[f"learning rates of {len(cells)} rows ({first} to {max(first, c.table1.lr_trials)} each)"] = \
        trials * length * len(cells)
    finals = sum(len(final_seeds(session, cell.row)) for cell in cells)
    parts[f"{finals} finals of {session.steps} steps"] = finals * length
    rows = [PlanRow(what, n * tokens, None if seconds is None else n * (seconds * tokens + EVALUATION_SECONDS))
            for what, n in parts.items() if n]
    if seconds is not None:
        rows.append(PlanRow(f"{len(cells)} rows begun", 0.0, len(cells) * OPEN_SECONDS))
    passes = decompositions(session, cells)
    if passes and seconds is not None:
        each = DECOMPOSE_SECONDS * session.setting.memory.spec.linear_numel
        rows.append(PlanRow(f"{passes} passes of decompositions (LoftQ, LQ-LoRA)", 0.0, passes * each))
    return rows


def _of_its_own(session: Session, row: Searched, equivalents: float, begun: set[tuple[str, bool, bool]],
                limit: str) -> float:
    """High-fidelity equivalents of a search that none before it within ``limit``, with its codes and ladder of bits,
    has done; ``begun`` is told of it."""
    group = limit, row.gptq, row.finer
    own = max(0.0, min(proposals_left(session.config), equivalents - calibration_and_anchors(session.config)))
    n = own if group in begun else equivalents
    begun.add(group)
    return n


def decompositions(session: Session, cells: Sequence[Cell]) -> int:
    """How often all weights are quantised and decomposed, which costs time and no token."""
    c = session.config
    limits = [sum(cell.row.name == name for cell in cells) for name in ("loftq", "lq_lora")]
    lq_lora = c.table1.rank_choices * (len(c.format_names) + c.adapter.iterations)
    return limits[0] * c.adapter.iterations + limits[1] * lq_lora


def check_searches(session: Session, cells: Sequence[Cell]) -> None:
    """Make every search's configuration, so that what is wrong with one is said before anything is trained.

    Raises:
        ConfigError: With all problems of one.
    """
    for cell in cells:
        if isinstance(cell.row, Searched):
            config = search_config(session, cell.limit, session.config.method.name, {}, {})
            engine_settings(config, session.folder, session.space, session.budget_bytes(cell.limit))
