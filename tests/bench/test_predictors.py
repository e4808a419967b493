"""What ranks allocations: the folds by an exact law, and the rows of the committed table."""

from pathlib import Path

import numpy as np
import pytest

from bench import predictors
from bench.collect.task import DATA
from bench.emulator.emulator import usable
from bench.emulator.table import load_table
from bench.emulators import bands


def test_a_law_is_found_from_the_other_folds_and_gaps_stay_gaps() -> None:
    rng = np.random.default_rng(0)
    early, bits, log_rank = rng.uniform(2, 9, 40), rng.uniform(2, 8, 40), rng.uniform(0, 3, 40)
    losses = np.exp(0.3 + 0.8 * np.log(early) - 0.02 * bits + 0.05 * log_rank)
    early[3] = np.nan
    predicted = predictors.in_folds(np.column_stack([np.log(early), bits, log_rank]), losses)
    assert np.isnan(predicted[3])
    np.testing.assert_allclose(np.delete(predicted, 3), np.delete(losses, 3), rtol=1e-9)


def test_rows_of_a_real_table() -> None:
    table = load_table(DATA / "plays")
    data = usable(table)
    losses = data.targets[:, -1]
    quantised = {" ".join(a.formats): -loss for a, loss in zip(data.allocations, losses, strict=True)}
    rows = predictors.rows_of(table, data, *predictors.predictions(table, data, quantised))
    by_name = {(r["band"], r["predictor"]): r for r in rows}
    assert by_name["all", "sum of I_q"]["spearman"] > 0.5
    assert by_name["all", "our surrogate, left one out"]["spearman"] > 0.9
    assert by_name["all", predictors.PERPLEXITY]["spearman"] < 0  # it was planted upside down
    fitted = "sum of {}, its root and ranks: a line fitted to the band's other folds"
    for band, inside in bands(table, data).items():
        if band.startswith("good"):  # the rise of the loss is what chance blurs
            assert by_name[band, fitted.format("believed sensitivity")]["spearman"] > by_name[
                band, fitted.format("I_q")]["spearman"]
        assert by_name[band, "sum of I_q"]["allocations"] == inside.sum()
    targets = predictors.targets_of(rows, ["plays"])
    assert [t.met for t in targets] == [True] * len(table.facts.budgets)
    unknown = predictors.rows_of(table, data, *predictors.predictions(table, data, {}))
    assert all(t.value is None for t in predictors.targets_of(unknown, ["plays"]))
    assert next(r for r in rows if "bits against ranks" in r["predictor"])["allocations"] <= predictors.BEST


def test_what_was_measured_of_quantisation_is_read_again(tmp_path: Path) -> None:
    assert predictors.load_quantised(tmp_path / "absent.csv") == {}
    (tmp_path / "q.csv").write_text("formats,loss\nnf4 int8,4.25\n")
    assert predictors.load_quantised(tmp_path / "q.csv") == {"nf4 int8": pytest.approx(4.25)}
