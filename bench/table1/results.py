"""``table1.json``: the finished rows, their paired comparisons, and figures that the paper reports."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.table1.cells import OWN, Cell, CellResult, is_free
from bench.table1.limits import Limit
from bench.table1.session import Session
from bench.table1.statistics import Difference, difference, gap_closed
from qra_bo.finetune.evaluation import task_name

LORA_16, QLORA = "lora_16", "qlora"
QRA_BO = ("qra_bo_finer_gptq", "qra_bo_gptq", "qra_bo")
"""Names of our rows, see ``qra_bo_among`` and ``qra_bo_like``."""
FINER = "_finer_gptq"
"""Suffix of the names of rows on the finer ladder of bits."""
METRICS = ("acc_norm", "acc", "exact_match")
"""A task's accuracy is the first of these metrics that it has."""


@dataclass(frozen=True, slots=True)
class Reported:
    """Figures of a public summary of the paper for LLaMA-3.1-8B: average accuracy over eight tasks (%), bits, rank and
    memory (GB)."""

    accuracy: float
    avg_bits: float
    avg_rank: float
    memory_gb: float

    def to_json(self) -> dict[str, Any]:
        return {"status": "reported", "model": "LLaMA-3.1-8B", "metric": "average accuracy over eight tasks, %",
                "value": self.accuracy, "avg_bits": self.avg_bits, "avg_rank": self.avg_rank,
                "memory_gb": self.memory_gb}


def reported(cell: Cell) -> Reported | None:
    """Return the figures of arXiv 2602.22268 for a row; most rows have none."""
    name, limit = cell.row.name, cell.limit
    if name == LORA_16:
        return Reported(69.94, 16.0, 16.0, 20.50)
    if name == QLORA:
        return Reported(67.45, 4.0, 16.0, 15.22)
    if name == "autoqra" and limit.max_average_bits == 4:
        return Reported(69.83, 3.75, 10.50, 13.08)
    if name == "autoqra" and is_free(limit):
        return Reported(70.45, 5.25, 12.25, 17.32)
    return None


def build(session: Session, cells: Sequence[Cell], results: Sequence[CellResult]) -> dict[str, Any]:
    """Return the contents of ``table1.json``.

    Args:
        session: For memory and provenance.
        cells: All rows of the table.
        results: Finished rows, in the order of the table.
    """
    done = {(r.cell.row.name, r.cell.limit.name): r for r in results}
    rows = [_row(session, r, {key: one for key, one in done.items() if one.losses}) for r in results]
    missing = [c.name for c in cells if (c.row.name, c.limit.name) not in done]
    c = session.config
    keep = ("version", "git", "data_sha256", "model_sha256", "packages", "device", "dtype", "threads", "platform")
    return {"schema_version": 1, "model": c.model_name, "data": c.data.name, "oracle": c.oracle.name,
            "fidelity": "high" if c.oracle.name == "finetune" else "proxy", "metric": "test_loss", "split": "test",
            "unit": "nats per token", "effort": c.effort.name, "table": session.options.name, "seed": c.seed,
            "steps": session.steps, "complete": not missing, "missing": missing,
            "limits": [_limit(session, limit) for limit in dict.fromkeys(cell.limit for cell in cells)
                       if limit is not OWN],
            "rows": rows,
            "provenance": {k: session.results.provenance.get(k) for k in keep}}


def _limit(session: Session, limit: Limit) -> dict[str, Any]:
    return {"name": limit.name, "scope": limit.scope,
            "budget_bytes": None if is_free(limit) else session.budget_bytes(limit),
            "max_average_bits": limit.max_average_bits}


def _row(session: Session, r: CellResult, others: Mapping[tuple[str, str], CellResult]) -> dict[str, Any]:
    row, limit = r.cell.row, r.cell.limit
    head = {"method": row.name, "title": row.title, "limit": limit.name, "scope": limit.scope, "why": r.why}
    figures = reported(r.cell)
    tail = {"reported": None if figures is None else figures.to_json()}
    empty = dict.fromkeys(("mean", "se", "avg_bits", "metadata_bits", "avg_rank", "predicted_bytes", "measured_bytes",
                           "peak_bytes", "stored_bytes", "search_steps", "train_steps", "gap_closed", "gap_low",
                           "gap_high", "learning_rate", "qra_bo_minus_row", "same_codes_minus_row", "accuracy",
                           "rates"))
    if r.found is None:
        return {**head, **empty, "seeds": 0, "train_seeds": [], "losses": [], "gap_note": "", "note": "",
                "scores": [], **tail}
    recipe, space, c = r.found.recipe, session.space, session.config
    peak, stored = (session.predicted_bytes(recipe, scope) for scope in ("peak", "stored"))
    values = np.array(list(r.losses.values()))
    ranks = [float(e["average_rank"]) for e in r.trials.values() if e["average_rank"] is not None]
    facts = {"avg_bits": recipe.average_bits(space), "metadata_bits": recipe.metadata_bits(space),
             "avg_rank": float(np.mean(ranks)) if ranks else recipe.average_rank(space),
             "predicted_bytes": peak if limit.scope == "peak" else stored, "measured_bytes": r.measured_bytes,
             "peak_bytes": peak, "stored_bytes": stored,
             "search_steps": round(r.search_cost / c.train.step_tokens), "train_steps": session.steps,
             "learning_rate": None if r.rate is None else c.adapter.lr * r.rate.lr_scale,
             "rates": None if r.rate is None else [[c.adapter.lr * s, loss] for s, loss in r.rate.trials],
             "mean": float(values.mean()) if len(values) else None,
             "se": float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None}
    ends = [others.get((name, OWN.name)) for name in (QLORA, LORA_16)]
    gap = gap_closed(r.losses, *({} if end is None else end.losses for end in ends), r.sequences,
                     *(None if end is None else end.sequences for end in ends))
    own = qra_bo_among(name for name, within in others if within == limit.name)

    def less(mine: str) -> Difference | None:
        one = others[mine, limit.name]
        return difference(one.losses, r.losses, one.failed, one.sequences, r.sequences)

    versus = None if own is None or row.name == own else less(own)
    alike = qra_bo_like(row.name, recipe.gptq_tokens is not None)
    same = None if row.name in QRA_BO or (alike, limit.name) not in others else less(alike)
    return {**head, **empty, **facts, "seeds": len(r.losses), "train_seeds": list(r.losses),
            "losses": list(r.losses.values()), "gap_closed": gap.share, "gap_low": gap.low, "gap_high": gap.high,
            "gap_note": gap.note, "qra_bo_minus_row": None if versus is None else versus.to_json(),
            "same_codes_minus_row": None if same is None else same.to_json(),
            "accuracy": accuracy(r.scores, session.options.tasks), "scores": r.scores, "note": _note(r),
            "recipe": recipe.to_json(), **tail}


def proxy_label(table: Mapping[str, Any]) -> str | None:
    """Return the label of a table of simulated losses; ``None`` if models were trained."""
    if table["fidelity"] == "high":
        return None
    return f"{table['oracle']} results: no model was trained; the figures say nothing about a method"


def qra_bo_among(methods: Iterable[str]) -> str | None:
    """Return our row that is compared with the others, among the methods within a limit."""
    there = set(methods)
    return next((name for name in QRA_BO if name in there), None)


def qra_bo_like(method: str, gptq: bool) -> str:
    """Return our row with the same bits and choice of codes as a row: a difference then has another cause."""
    finer, chosen, nearest = QRA_BO
    return finer if method.endswith(FINER) else chosen if gptq else nearest


def accuracy(scores: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> float | None:
    """Return the mean over ``tasks`` of each one's first of ``METRICS``; ``None`` without any.

    The harness also scores the parts of a group (57 of MMLU); they count in the group alone.
    """
    asked, by_task = {task_name(t) for t in tasks}, dict[str, dict[str, float]]()
    for s in scores:
        if s["task"] not in asked:
            continue
        by_task.setdefault(s["task"], {})[s["metric"].partition(" ")[0]] = float(s["value"])
    values = [next(found[m] for m in METRICS if m in found) for found in by_task.values()
              if any(m in found for m in METRICS)]
    return float(np.mean(values)) if values else None


def _note(r: CellResult) -> str:
    notes = [r.found.note] if r.found is not None and r.found.note else []
    if r.rate is not None and not r.rate.inside:
        notes.append("the best learning rate is at the end of those tried")
    failed = [e for e in r.trials.values() if e["loss"] is None]
    if failed:
        notes.append(f"{len(failed)} of {len(r.trials)} finals gave no loss ({failed[0]['state']})")
    return "; ".join(notes)
