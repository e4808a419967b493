"""Study of levers: predictions by module, its plan with planted losses, and what its workers change."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.length.plan import RATES, SEARCH_SEED, UNSEEN_SEEDS, next_rate
from bench.length.trials import NAME, Key, PlannedTrial, append, load, to_event
from bench.levers import __main__ as program
from bench.levers import plan
from bench.levers.plan import LAYERS, LEVERS, PROMISING, SCHEDULE, START, setting, sources_of, wanted
from bench.levers.predicted import (
    BUDGET_BYTES,
    PROFILED,
    Predictions,
    by_module,
    joined,
    load_profile,
    predictions_of,
    save_profile,
    table_by_share,
    trial_config,
)
from bench.levers.summary import profile_seconds, rows_of, summarise
from bench.levers.worker import WarmupStableDecay
from bench.pages import blocks
from bench.pages import levers as pages
from bench.report import publish
from qra_bo.config import make_space, make_spec
from qra_bo.pipeline.build import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.lengths import at_length
from qra_bo.searchers.structured.transfer import load_prior
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, make_units
from qra_bo.study.setting import BytesPredictor

TINY = ["+model=tiny", "model.intermediate_size=128", "model.n_layers=1", "data=tiny", "quantizer.rounding=rtn",
        "eval.sequences=4"]
CONFIG = trial_config("plays", None)
SPEC = make_spec(CONFIG)
UNITS = {granularity: make_units(SPEC, granularity) for granularity in PROFILED}


def profile_of(granularity: str) -> SensitivityProfile:
    """Sensitivities by share of the parameters, different from layer to layer and equal within one."""
    own = CONFIG.with_changes(granularity=granularity, bits=tuple(sorted(PROFILED[granularity])))
    units, layer = UNITS[granularity], UNITS["layer"][0].numel
    by_bits = np.array([4.0 ** -bits for bits in own.bits])
    weight = np.array([u.numel / layer * (1 + 0.1 * u.linears[0].layer) for u in units])
    values = 30 * weight[:, None] * by_bits
    return SensitivityProfile(tuple(u.name for u in units), own.format_names, values, values, None, 4.0, "planted",
                              0.1 * values)


PROFILES = {granularity: profile_of(granularity) for granularity in PROFILED}
PREDICTIONS: Predictions = {source: Allocation(("nf4",) * (210 - i) + ("int3-g64",) * i, (2,) * 210)
                            for i, source in enumerate(sources_of(LEVERS))}


def answered(gains: dict[str, float], predictions: Predictions = PREDICTIONS) -> \
        tuple[list[PlannedTrial], dict[Key, Any]]:
    """Planted losses: every variant ends at its ``gains`` below 4, but for a seed's own part."""
    order: list[PlannedTrial] = []
    found: dict[Key, Any] = {}
    while (planned := next(wanted("plays", 24, LEVERS, predictions, 210, found), None)) is not None:
        trial, name = planned
        order.append(trial)
        found[trial.key] = {"loss": 4 - gains.get(name, 0.0) + (trial.lr_scale - 1) ** 2 + trial.train_seed % 7}
    return order, found


def test_layers_spread_over_their_modules() -> None:
    allocation = Allocation(tuple("nf4" if i % 2 else "int3-g64" for i in range(30)), tuple(range(1, 31)))
    spread = by_module(allocation, UNITS["layer"], UNITS["module"])
    assert spread.ranks == tuple(i for i in range(1, 31) for _ in range(7))
    assert by_module(spread, UNITS["module"], UNITS["module"]) == spread
    config = CONFIG.with_changes(granularity="layer")
    by_layer, by_part = (BytesPredictor(make_memory(c, SPEC, "cpu"), make_space(c, SPEC)) for c in (config, CONFIG))
    assert by_layer(allocation) == by_part(spread)


def test_predictions_are_those_of_the_product_and_fit() -> None:
    predictions = predictions_of(sources_of(LEVERS), PROFILES, CONFIG, 24)
    stored = BytesPredictor(make_memory(CONFIG, SPEC, "cpu"), make_space(CONFIG, SPEC))
    assert set(predictions) == set(sources_of(LEVERS))
    assert all(stored(a) <= BUDGET_BYTES and len(a) == 210 for a in predictions.values())
    assert predictions_of(sources_of(LEVERS), {"layer": PROFILES["layer"]}, CONFIG, 24).keys() == {
        source for source in sources_of(LEVERS) if source.granularity == "layer"}


def test_formats_that_are_measured_later_join_a_profile(tmp_path: Path) -> None:
    whole = PROFILES["layer"]
    parts = [whole.of_formats(names) for names in (whole.formats[1:3], (whole.formats[0], *whole.formats[3:]))]
    save_profile(tmp_path / "one.json", joined(*parts), {"units": 30})
    found, cost = load_profile(tmp_path / "one.json")
    assert cost == {"units": 30}
    for field in dataclasses.fields(whole):
        assert np.array_equal(getattr(found.of_formats(whole.formats), field.name), getattr(whole, field.name))


def test_roots_by_share_do_not_depend_on_the_units() -> None:
    rates, totals = at_length(load_prior(CONFIG.surrogate.rates).rates, 24), {}
    for granularity in PROFILED:
        config = CONFIG.with_changes(granularity=granularity, bits=(3, 4))
        space = make_space(config, SPEC)
        problem = SearchProblem(space, make_memory(config, SPEC, "cpu").table(space), BUDGET_BYTES,
                                PROFILES[granularity].of_formats([f.name for f in space.formats]), 24, None, 0)
        totals[granularity] = table_by_share(rates, problem, SPEC.n_layers).sum(axis=0)
        if granularity == "layer":
            np.testing.assert_allclose(table_by_share(rates, problem, SPEC.n_layers), rates.table(problem))
    np.testing.assert_allclose(totals["module"], totals["layer"])
    np.testing.assert_allclose(totals["fused"], totals["layer"])


def test_levers_that_are_not_promising_take_one_seed() -> None:
    order, found = answered({})
    assert len({trial.key for trial in order}) == len(order)
    assert {trial.train_seed for trial in order if trial.split == "test"} == {UNSEEN_SEEDS[0]}
    assert {trial.train_seed for trial in order if trial.split == "validation"} == {SEARCH_SEED}
    variants = {(t.task, t.allocation) for t in order}
    for variant in variants:
        rates = [t.lr_scale for t in order if (t.task, t.allocation) == variant and t.split == "validation"]
        assert len(set(rates)) == len(rates) == RATES  # equal effort
    assert all(row["seeds"] == 1 and row["one_seed"] == 0.0 for row in rows_of("plays", 24, PREDICTIONS, found, CONFIG))


def test_promising_levers_are_paired_on_all_seeds() -> None:
    lever = LEVERS[0]
    _, found = answered({lever.variant.name: 2 * PROMISING})
    rows = {row["lever"]: row for row in rows_of("plays", 24, PREDICTIONS, found, CONFIG)}
    assert rows[lever.name]["seeds"] == 5
    assert rows[lever.name]["minus_base"]["mean"] == pytest.approx(-2 * PROMISING)
    assert rows[lever.name]["validation_gain"] == pytest.approx(2 * PROMISING)
    assert rows[LEVERS[1].name]["seeds"] == 1


def test_one_unseen_seed_may_be_promising_too() -> None:
    lever = LEVERS[0]
    order, found = answered({})
    for trial in order:
        if trial.split == "test" and trial.allocation == PREDICTIONS[lever.variant.source]:  # type: ignore[index]
            found[trial.key]["loss"] -= 2 * PROMISING
    missing = {trial.train_seed for trial, _ in wanted("plays", 24, LEVERS[:1], PREDICTIONS, 210, found)}
    assert missing == set(UNSEEN_SEEDS[1:])


def test_table_follows_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RESULTS", tmp_path)
    rows = rows_of("plays", 24, PREDICTIONS, answered({LEVERS[0].variant.name: 2 * PROMISING})[1], CONFIG)
    rows[2]["validation_gain"] = None
    publish("levers", [], [{**row, "profile_seconds": None} for row in rows], ("lever",), folder=tmp_path)
    lines = pages.TABLES["levers"]().splitlines()[2:]
    assert "**\N{MINUS SIGN}0.0200 (" in lines[0]
    assert lines[0].endswith(" | 5 | \N{EN DASH} |")
    assert lines[1].endswith(" | +0.0000 | 1 | \N{EN DASH} |")
    assert pages.TABLES["levers-missing"]() == f"- plays: {LEVERS[2].name}"


@pytest.mark.parametrize(("losses", "third"), [((4.0, 4.1), 0.714), ((4.1, 4.0), 1.96)])
def test_the_third_rate_is_beside_the_better(losses: tuple[float, float], third: float) -> None:
    tried: dict[float, float] = {}
    for loss in losses:
        rate = next_rate(tried, first=plan.PREDICTED_RATES)
        assert rate is not None
        tried[rate] = loss
    assert next_rate(tried, first=plan.PREDICTED_RATES) == third
    assert next_rate({**tried, third: 5.0}, first=plan.PREDICTED_RATES) is None


def test_a_profile_costs_by_its_formats() -> None:
    rows = [{"granularity": "layer", "cpu_seconds": 60.0, "formats": 6}]
    assert profile_seconds(LAYERS, rows) == 20.0
    assert profile_seconds(plan._uniform(3, 15), rows) is None


def test_equal_allocations_are_not_trained_twice() -> None:
    same = {source: PREDICTIONS[LAYERS.source] for source in PREDICTIONS}  # type: ignore[index]
    order, found = answered({}, same)
    assert not [trial for trial in order if trial.task == "plays" and trial.allocation.ranks[0] == 2
                and trial.split == "test" and trial.train_seed != UNSEEN_SEEDS[0]]
    rows = {row["lever"]: row for row in rows_of("plays", 24, same, found, CONFIG)}
    assert rows[LEVERS[0].name]["same_allocation"]
    assert rows[LEVERS[0].name]["validation_gain"] is None


def test_trials_of_two_machines_are_not_paired(tmp_path: Path) -> None:
    lever = next(lever for lever in LEVERS if lever.name == "weighted initialisation, uniform 2 bits, rank 16")
    order, found = answered({lever.variant.name: 2 * PROMISING})
    allocation = plan.allocation_of(lever.base, {}, 210)
    (tmp_path / "other").mkdir()
    for trial in (t for t in order if t.allocation == allocation):
        folder = tmp_path if trial.task == "plays" else tmp_path / "other"
        append(folder / NAME, to_event(trial, "", {"state": "ok", "loss": found[trial.key]["loss"]}, "s"))
    summarise(["plays"], CONFIG, tmp_path, tmp_path)
    rows = {r["lever"]: r for r in json.loads((tmp_path / "levers.json").read_text())["rows"]}
    assert (rows[lever.name]["seeds"], rows[lever.name]["validation_gain"]) == (0, None)
    (tmp_path / "other" / NAME).rename(tmp_path / "other" / "x")
    with (tmp_path / NAME).open("ab") as file:
        file.write((tmp_path / "other" / "x").read_bytes())
    summarise(["plays"], CONFIG, tmp_path, tmp_path)
    rows = {r["lever"]: r for r in json.loads((tmp_path / "levers.json").read_text())["rows"]}
    assert rows[lever.name]["seeds"] == 5


def test_what_is_not_measured_is_null() -> None:
    rows = rows_of("plays", 24, {}, {}, CONFIG)
    assert all(row["mean"] is row["minus_base"] is row["validation_gain"] is None for row in rows)


def test_changes_have_workers_of_their_own() -> None:
    order, _ = answered({})
    assert {trial.task for trial in order} == {"plays", setting("plays", START), setting("plays", SCHEDULE)}
    changed = sum(lever.variant.change != plan.PLAIN for lever in LEVERS)
    assert sum(a.task != b.task for a, b in itertools.pairwise(order)) < 3 * changed  # not one for each trial


def test_stable_schedule_rises_stays_and_falls() -> None:
    settings = WarmupStableDecay(warmup=0.1, lr_floor=0.05)
    factors = [settings.lr_factor(step, 24) for step in range(24)]
    assert factors[:18] == pytest.approx([0.5] + [1.0] * 17)
    assert factors[18:] == pytest.approx([0.05 + 0.95 * left / 6 for left in range(5, -1, -1)])


@pytest.mark.slow
def test_a_run_resumes_and_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LEVERS", LEVERS[:1])
    arguments = ["--out", str(tmp_path), *TINY]
    assert program.main([*arguments, "--trials", "1"]) == 0
    assert sorted(path.name for path in tmp_path.glob("profile-*")) == [
        f"profile-plays-{granularity}.json" for granularity in sorted(PROFILED)]
    (first,) = load(tmp_path / NAME)
    assert program.main([*arguments, "--trials", "1"]) == 0
    assert next(iter(load(tmp_path / NAME))) == first
    assert len(load(tmp_path / NAME)) == 2
    assert program.main([*arguments, "--summary", "--results", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "levers.json").read_text())
    assert [row["part"] for row in written["rows"]] == ["lever"] * len(LEVERS) + ["profile"] * len(PROFILED)
