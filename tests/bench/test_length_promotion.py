"""Rules that choose for a longer training: what each takes, and what it costs."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.length import promotion
from bench.length.promotion import RULES, Pool, cost_of_halving, regrets

SHORT = np.array([5.0, 4.0, 3.0, 2.0] + [6.0] * 40)
FINAL = np.array([1.0, 1.5, 1.2, 1.4] + [2.0] * 40)
POOL = Pool(SHORT, np.stack([SHORT, SHORT[::-1], FINAL], axis=1))


def test_halving_pays_for_what_goes_on_alone() -> None:
    assert cost_of_halving(9) == 9 + 3 * 2 + 1 * 7
    assert cost_of_halving(1) == promotion.WHOLE


@pytest.mark.parametrize(("rule", "cost", "chosen"), [
    ("short runs alone", 2, 1), ("short runs alone", 40, 3),
    ("short runs, the best trained whole", 24, 3), ("short runs, the best trained whole", 44, 2),
    ("whole trainings alone", 20, 0), ("whole trainings alone", 9 + 1, 0)])
def test_each_rule_chooses_by_the_losses_that_it_pays_for(rule: str, cost: int, chosen: int) -> None:
    assert RULES[rule](POOL, cost) == chosen


def test_halving_drops_two_thirds_at_each_look() -> None:
    rungs = np.array([[1.0, 3.0, 0.5], [2.0, 2.0, 2.0], [3.0, 1.0, 3.0], *[[9.0, 0.0, 0.0]] * 6])
    assert RULES["successive halving of whole trainings"](Pool(rungs[:, 0], rungs), 22) == 2


def test_a_rule_that_sees_all_the_end_has_no_regret() -> None:
    rows = [{"stored_bytes": i, "short_loss": 4.0 + 0.1 * (i % 3),
             "curve": [[24, 4.0], [72, 3.9], [240, 3.0 + i / 100]]} for i in range(14)]
    found = regrets(rows, 1000)
    assert {each.shape for each in found.values()} == {(3, promotion.DRAWS)}
    assert found["whole trainings alone"].max() == 0.0
    assert found["short runs, the best trained whole"].max() == 0.0
    assert found["short runs alone"].min() == 0.0


def test_the_published_rows_are_of_the_published_table(tmp_path: Path) -> None:
    assert promotion.main(["--out", str(tmp_path)]) == 0
    name = "length_promotion.json"
    published, again = (json.loads((folder / name).read_text())["rows"] for folder in (promotion.RESULTS, tmp_path))
    assert len(published) == len(again)
    for one, other in zip(published, again, strict=True):
        assert other == pytest.approx(one)
