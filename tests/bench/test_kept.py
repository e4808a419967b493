"""Rows of a published comparison beside new searches: the same numbers as if all had been searched at once."""

from typing import Any

import numpy as np
import pytest

from bench.search.kept import kept_rows
from bench.search.summary import search_rows
from tests.bench.test_search import made

Runs = list[dict[str, Any]]
SETTINGS = {("qra_bo", "s"), ("qra_bo with one draw", "s"), ("TPE", "s")}


def searches(method: str, kind: str, best: float, **more: Any) -> Runs:
    rng = np.random.default_rng(len(method))
    return [made(method, kind, seed, [4.1, best + float(rng.uniform(0, 0.05)), best + 0.01 * seed / 10], **more)
            for seed in range(10)]


def flat(rows: Runs) -> dict[str, Any]:
    return {row["method"]: {key: value for key, value in sorted(row.items())} for row in rows}


def test_kept_rows_are_those_of_one_summary_of_all() -> None:
    """The new search is better than any before, so that all regrets change."""
    peers, old = searches("TPE", "peer", 4.05), searches("qra_bo", "qra_bo", 4.03)
    new = searches("qra_bo", "qra_bo", 4.0)
    part = searches("qra_bo with one draw", "ablation", 4.04)
    published = [{"what": "search", **row} for row in search_rows([*peers, *old, *part])]
    kept = kept_rows(published, new, SETTINGS)
    assert [row["method"] for row in kept] == ["TPE"]
    found, whole = flat(search_rows(new, kept)), flat(search_rows([*peers, *new]))
    assert set(found) == set(whole) == {"qra_bo", "TPE"}
    for method, row in whole.items():
        assert set(found[method]) == set(row)
        for key, value in row.items():
            if key in ("regret", "low", "high", "curve", "quartiles"):
                np.testing.assert_allclose(found[method][key], value, atol=1e-12)
            elif key == "finals":
                assert found[method][key] == pytest.approx(value)
            else:
                assert found[method][key] == value, key
