"""Kept rows of a published comparison, beside those of new searches."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.search.methods import OTHERS

Row = dict[str, Any]
OWN = ("best_peer", "cost_to_")
"""How the fields begin that a row's arena decides and that are made anew."""


def published_rows(path: Path) -> list[Row]:
    """The rows of single searches' summaries in a file that this benchmark wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["what"] == "search"]


def arena_of(run_or_row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Task, emulator and budget."""
    return run_or_row["task"], run_or_row["emulator"], run_or_row["budget"]


def kept_rows(published: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]],
              settings: Collection[tuple[str, str]]) -> list[Row]:
    """Rows of other methods than ours that no run is of, with the settings (``(method, settings)``) and on the table
    that count now. What a part of ours is worth can only be told from searches of one state of it."""
    made = {(arena_of(run), run["method"]) for run in runs}
    tables = {run["task"]: run["rows_sha256"] for run in runs}
    return [{key: value for key, value in row.items() if key != "what" and not key.startswith(OWN)}
            for row in published
            if row["kind"] in OTHERS
            and (arena_of(row), row["method"]) not in made
            and (row["method"], row["settings"]) in settings
            and row.get("rows_sha256") == tables.get(row["task"], "")]


def rescaled(row: Mapping[str, Any], best: float, uniform: float) -> Row:
    """A row whose regrets are of its arena's best known loss and best uniform choice as they are now.

    A regret is an increasing line in the loss, and so are medians, quantiles and their intervals.
    """
    span = row["best_uniform"] - row["best_known"]

    def now(values: Any) -> Any:
        regrets = (row["best_known"] + np.asarray(values) * span - best) / max(uniform - best, 1e-12)
        return regrets.tolist()

    return {**row, "best_known": best, "best_uniform": uniform,
            **{key: now(row[key]) for key in ("regret", "low", "high", "curve", "quartiles")},
            "finals": {seed: now(value) for seed, value in row["finals"].items()}}
