"""The study of learning rates by length: which trial is next, and what its rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.length import rates
from bench.length.plan import SEARCH_SEED, UNSEEN_SEEDS
from bench.length.trials import Key, PlannedTrial
from qra_bo.finetune.training.learning_rate import RATE_RULES


def losses(trial: PlannedTrial) -> float:
    """A parabola whose best factor is 0.5 in long trainings and 1 in others; the seed shifts its level."""
    best = 0.5 if trial.steps > rates.TRIAL else 1.0
    return 4 + (trial.lr_scale - best) ** 2 + trial.train_seed % 7


def study(most: int) -> dict[Key, dict[str, Any]]:
    """Return the first trials of the study as ``load`` does."""
    found: dict[Key, dict[str, Any]] = {}
    while len(found) < most and (following := rates.wanted(found)) is not None:
        trial, _ = following
        assert trial.key not in found
        found[trial.key] = {"lr_scale": trial.lr_scale, "loss": losses(trial), "steps": trial.steps}
    return found


def test_the_study_ends_and_each_allocation_has_three_rates() -> None:
    found = study(1000)
    rows = rates.rate_rows(found)
    assert [len(row["tried"]) for row in rows] == [3] * sum(len(choices) for _, choices in rates.LENGTHS)
    assert all(row["best"] == pytest.approx(0.5 if row["steps"] > rates.TRIAL else 1.0, rel=0.3) for row in rows)
    checks = rates.check_rows(found)
    assert [(c["steps"], c["bits"], c["rank"], c["seeds"]) for c in checks] == \
        [(*check, rates.CHECKED_SEEDS) for check in rates.CHECKS]
    for check in checks:
        gain = (check["by_length"] - 0.5) ** 2 - 0.25
        assert check["difference"] == pytest.approx(gain) == pytest.approx(check["low"])


def test_checks_come_on_unseen_seeds_after_the_rates_that_made_the_rule() -> None:
    seeds = [key[3] for key in study(1000)]
    first = min(seeds.index(seed) for seed in UNSEEN_SEEDS[:rates.CHECKED_SEEDS])
    assert set(seeds[:first]) == {SEARCH_SEED}
    assert rates.check_rows(study(first + 1)) == []


def test_the_factor_of_the_rule_is_that_of_the_trainer() -> None:
    rule = RATE_RULES["by_length"]
    assert rates.by_length(1, rates.TRIAL) == 1
    assert rates.by_length(4, 240) * 4**0.5 == pytest.approx(rule.factor(4, 10), rel=1e-2)


def test_the_published_rows_are_of_the_published_trials(tmp_path: Path) -> None:
    assert rates.main(["--summary", "--results", str(tmp_path)]) == 0
    made, published = (json.loads((folder / "length_rates.json").read_text(), parse_float=digits)["rows"]
                       for folder in (tmp_path, rates.RESULTS))
    assert made == published


def digits(text: str) -> float:
    """Return a number without its last digits, which processors round otherwise."""
    return round(float(text), 12)
