"""Rows of a published comparison beside new searches: the same numbers as if all had been searched at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.search.kept import kept_rows, published_rows, rescaled
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


def test_regrets_follow_the_best_known_and_the_best_uniform_choice() -> None:
    row = {"best_known": 4.0, "best_uniform": 4.2, "regret": 0.5, "low": 0.0, "high": 1.0, "curve": [1.0, 0.5],
           "quartiles": [[1.0], [0.5]], "finals": {"0": 0.5}}
    found = rescaled(row, 3.9, 4.1)
    assert found["regret"] == found["finals"]["0"] == pytest.approx(1.0)  # 4.1
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(1.5))
    assert found["quartiles"] == [[pytest.approx(1.5)], [pytest.approx(1.0)]]
    assert (found["best_known"], found["best_uniform"]) == (3.9, 4.1)


@pytest.mark.parametrize("more", [{"settings": "older"}, {"rows_sha256": "of another table"}])
def test_what_is_of_other_settings_or_another_table_is_not_kept(more: dict[str, str]) -> None:
    published = [{"what": "search", **row} for row in search_rows(searches("TPE", "peer", 4.05, **more))]
    assert kept_rows(published, searches("qra_bo", "qra_bo", 4.0), SETTINGS) == []


def test_rows_that_do_not_say_their_table_are_not_kept() -> None:
    row = {"what": "search", **search_rows(searches("TPE", "peer", 4.05))[0]}
    del row["rows_sha256"]
    assert kept_rows([row], searches("qra_bo", "qra_bo", 4.0), SETTINGS) == []


def test_published_rows_are_those_of_searches(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"rows": [{"what": "search", "method": "a"}, {"what": "surrogate"}]}))
    assert published_rows(path) == [{"what": "search", "method": "a"}]
