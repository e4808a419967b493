"""The files of a table of real trials, as ``bench.emulator.table`` reads them, written."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.emulator.table import SCHEMA_VERSION, TableRow, TaskFacts, columns, same_rate
from bench.store import append_line
from qra_bo.space import Allocation, CostTable


def facts_to_json(facts: TaskFacts) -> dict[str, Any]:
    """Return the contents of ``task.json``."""
    plain: dict[str, Any] = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(facts)}))
    return plain


def is_known(rows: Sequence[TableRow], allocation: Allocation, train_seed: int, lr_scale: float) -> bool:
    """Whether a row holds the trial of an allocation with this training seed and factor on the learning rate."""
    return any(row.allocation == allocation and row.train_seed == train_seed and same_rate(row.lr_scale, lr_scale)
               for row in rows)


def append_rows(path: Path, facts: TaskFacts, rows: Iterable[TableRow]) -> None:
    """Write rows at the end of ``evaluations.csv`` and wait until the disk has them; a cut-off last line goes first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(facts), lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    for row in rows:
        writer.writerow(_cells(row, facts))
    if text.getvalue():
        append_line(path, text.getvalue().removesuffix("\n"))


def append_provenance(path: Path, batch: str, facts: Mapping[str, Any]) -> None:
    """One more line of ``provenance.jsonl``."""
    append_line(path, json.dumps({"batch": batch, **facts}, sort_keys=True))


def _cells(row: TableRow, facts: TaskFacts) -> dict[str, Any]:
    def number(value: float | None) -> str:
        return "" if value is None else repr(float(value))

    early = {f"loss_{step}": number(loss) for step, loss in zip(facts.record_at, row.early, strict=True)}
    sizes = {f"{scope}_bytes": size for scope, size in row.bytes.items()}
    allocation = row.allocation
    return {"fingerprint": allocation.fingerprint, "origin": row.origin, "formats": " ".join(allocation.formats),
            "ranks": " ".join(map(str, allocation.ranks)), "train_seed": row.train_seed,
            "lr_scale": repr(row.lr_scale), "state": row.state.value, "loss": number(row.loss),
            "loss_se": number(row.loss_se), **early, **sizes, "seconds": f"{row.seconds:.1f}", "batch": row.batch}


def costs_to_json(costs: Mapping[str, CostTable]) -> dict[str, Any]:
    """Memory by scope, JSON values only: tables that units share are written once."""
    return {scope: [{"name": p.name, "fixed": int(p.fixed), "unit": _shared(p.unit), "spike": _shared(p.spike)}
                    for p in table.phases] for scope, table in costs.items()}


def _shared(values: Any) -> dict[str, Any]:
    tables, which = np.unique(values, axis=0, return_inverse=True)
    return {"tables": tables.tolist(), "of_unit": which.reshape(-1).tolist()}
