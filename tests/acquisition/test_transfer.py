"""Priors learned from earlier studies: closed forms, their file, and the search that uses them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qra_bo import prior as command
from qra_bo.acquisition.earlier import EarlierTable
from qra_bo.acquisition.features import build_components
from qra_bo.acquisition.structured_search import StructuredOptions, StructuredSearch
from qra_bo.acquisition.transfer import (
    LEAST_SPREAD,
    MOST_SPREAD,
    PartPrior,
    Prior,
    Taught,
    combine,
    load_prior,
    save_prior,
    taught,
    with_prior,
)
from qra_bo.build import make_space as make_space_of
from qra_bo.build import make_spec
from qra_bo.config import load_config
from qra_bo.errors import ConfigError, JournalError
from qra_bo.evolution.baselines import RandomSearch
from qra_bo.priors import prior_file, shipped_priors
from qra_bo.run import search
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space.knapsack import solve_knapsack
from tests.conformance.searcher import make_problem, play, proposals_of
from tests.spaces import make_space


def table_of(values: FloatArray, ranks: tuple[int, ...] = (1, 2, 4, 8)) -> EarlierTable:
    return EarlierTable.of(make_space(len(values), make_space(1).formats[:values.shape[1]], ranks), values)


def test_scales_combine_as_geometric_means_with_bounded_spread() -> None:
    rng = np.random.default_rng(0)
    one, two, other = (table_of(rng.normal(size=(n, 4, 4))) for n in (5, 5, 6))
    found = combine([Taught({"damage": 0.2, "rank": 1.0}, one), Taught({"damage": 0.8}, two), Taught({}, other)])
    assert found.parts["damage"].scale == pytest.approx(0.4)
    between = math.log(4) / math.sqrt(2)
    assert found.parts["damage"].spread == pytest.approx(min(math.hypot(between, LEAST_SPREAD), MOST_SPREAD))
    assert found.parts["rank"] == PartPrior(1.0, LEAST_SPREAD)
    assert found.table is not None
    assert found.table.axes == one.axes
    np.testing.assert_allclose(found.table.values, (one.values + two.values) / 2)


def test_beliefs_have_mean_0_in_every_unit_and_the_sum_over_units_variance_1() -> None:
    values = table_of(np.random.default_rng(1).normal(3.0, 2.0, size=(5, 4, 4))).values
    np.testing.assert_allclose(values.mean(axis=(1, 2)), 0.0, atol=1e-12)
    assert values.var(axis=(1, 2)).sum() == pytest.approx(1.0)
    assert not table_of(np.full((5, 4, 4), 7.0)).values.any()


def test_beliefs_carry_over_to_the_same_units_and_to_ladders_within_theirs() -> None:
    space = make_space(5, make_space(1).formats, (1, 2, 4, 8))
    table = EarlierTable.of(space, np.random.default_rng(2).normal(size=(5, len(space.formats), 4)))
    whole = table.over(space)
    assert whole is not None
    np.testing.assert_allclose(whole, table.values)
    part = table.over(make_space(5, space.formats[1:3], (2, 3, 8)))
    assert part is not None
    np.testing.assert_allclose(part[:, :, [0, 2]], table.values[:, 1:3][:, :, [1, 3]])
    between = math.log2(3) - 1
    expected = (1 - between) * table.values[:, 1:3, 1] + between * table.values[:, 1:3, 2]
    np.testing.assert_allclose(part[:, :, 1], expected)
    assert table.over(make_space(6, space.formats, (1, 2, 4, 8))) is None
    assert table.over(make_space(5, space.formats, (1, 2, 4, 16))) is None
    assert EarlierTable.of(make_space(5, space.formats[:2], (1, 2)), np.zeros((5, 2, 2))).over(space) is None


def test_a_prior_survives_its_file_and_damage_is_said(tmp_path: Path) -> None:
    path, part = tmp_path / "prior.json", PartPrior(0.3, 0.5)
    save_prior(Prior({"damage": part}), ["a run"], path)
    assert load_prior(path) == Prior({"damage": part})
    table = table_of(np.random.default_rng(3).normal(size=(5, 4, 4)))
    save_prior(Prior({"damage": part}, table), ["a run"], path)
    loaded = load_prior(path).table
    assert loaded is not None
    assert loaded.axes == table.axes
    np.testing.assert_allclose(loaded.values, table.values, atol=1e-6)
    path.write_text('{"schema_version": 1, "parts": {}}')  # as releases without tables wrote it
    assert load_prior(path) == Prior({})
    good = '"units": ["a:1"], "formats": ["nf4"], "ranks": [1, 2], "values": [[[0, 1]]]'
    for text, said in (("{", "no prior"), ('{"schema_version": 9, "parts": {}}', "schema_version is 9"),
                       ('{"schema_version": 1, "parts": {"a": {"scale": -1, "spread": 1}}}', "positive"),
                       (table_text(good.replace("[1, 2]", "[2, 1]")), "strictly increasing"),
                       (table_text(good.replace("[[[0, 1]]]", "[[[0]]]")), "1 x 1 x 2 finite values"),
                       (table_text(good.replace('"ranks": [1, 2], ', "")), "no prior")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_prior(path)
    path.write_text(table_text(good))
    assert load_prior(path).table is not None
    with pytest.raises(ConfigError, match="can't be read"):
        load_prior(tmp_path / "absent.json")


def table_text(table: str) -> str:
    return f'{{"schema_version": 1, "parts": {{}}, "table": {{{table}}}}}'


def test_the_first_proposal_is_the_best_that_was_believed_of_the_same_units(tmp_path: Path) -> None:
    problem, _ = make_problem()
    values = np.random.default_rng(4).normal(size=problem.costs.shape)
    path = tmp_path / "prior.json"
    save_prior(Prior({}, EarlierTable.of(problem.space, values)), [], path)
    searcher = StructuredSearch(problem, StructuredOptions(prior=str(path)))
    row = solve_knapsack(values, problem.costs, problem.budget_bytes, rel_gap=1e-3)
    first, second = searcher.ask(1), StructuredSearch(problem).ask(1)
    assert first[0].allocation == problem.space.decode(row)
    assert first != second
    assert searcher.ask(1) == second  # then what would have been the first


def test_beliefs_are_a_part_of_the_surrogate() -> None:
    problem, _ = make_problem()
    values = np.random.default_rng(5).normal(size=problem.costs.shape)
    names = [c.name for c in build_components(problem)]
    assert [c.name for c in build_components(problem, earlier=values)] == [*names, "earlier"]
    assert [c.name for c in build_components(problem, ["earlier"], values)] == names


def test_parts_take_what_was_learned_of_them_and_no_more() -> None:
    problem, _ = make_problem()
    before = build_components(problem)
    after = with_prior(before, Prior({"damage": PartPrior(0.123, 0.4), "of another method": PartPrior(1.0, 1.0)}))
    assert [(c.scale, c.spread) for c in after if c.name == "damage"] == [(0.123, 0.4)]
    assert [c for c in after if c.name != "damage"] == [c for c in before if c.name != "damage"]


def test_a_study_teaches_the_search_that_follows(tmp_path: Path) -> None:
    problem, oracle = make_problem()
    told = [e for _, told in play(RandomSearch(problem), problem, oracle, 16) for e in told]
    assert taught(problem, told[:5]) is None
    study = taught(problem, told)
    assert study is not None
    assert set(study.scales) == {c.name for c in build_components(problem)}
    path = tmp_path / "prior.json"
    parts = combine([study]).parts
    save_prior(Prior({name: PartPrior(10 * part.scale, part.spread) for name, part in parts.items()}), [], path)
    plain, helped = (StructuredSearch(problem, replace(StructuredOptions(n_prior=0), prior=prior))
                     for prior in (None, str(path)))
    for searcher in (plain, helped):
        searcher.tell(told)
    rows = problem.space.encode_all([e.allocation for e in told])
    first, second = plain.predict(rows), helped.predict(rows)
    assert first is not None
    assert second is not None
    assert not np.allclose(first[0], second[0])
    assert len(proposals_of(play(helped, problem, oracle, 4))) == 4


def test_runs_teach_a_prior_that_a_run_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4", "display=none", "confirm.seeds=0"]
    run = search([*common, f"out={tmp_path / 'first'}", "effort=quick", "effort.high_equivalents=20"])
    path = tmp_path / "prior.json"
    assert command.main([str(run.folder), "--out", str(path)]) == 0
    learned = load_prior(path)
    assert "damage" in learned.parts
    assert learned.table is not None
    taught = search([*common, f"out={tmp_path / 'second'}", "effort=quick", f"surrogate.prior={path}"])
    assert taught.best["loss"] < 10.0
    same = [*common, f"out={tmp_path / 'second'}", "effort=quick", f"surrogate.prior={path}"]
    held = path.read_bytes()
    save_prior(Prior({"damage": PartPrior(0.2, 0.5)}), ["others"], path)
    with pytest.raises(JournalError, match=r"surrogate\.prior has changed.*Restore it"):
        search(same)
    path.write_bytes(held)
    assert search(same).best == taught.best
    assert command.main([str(tmp_path), "--out", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"surrogate\.prior must name a file"):
        search([*common, f"out={tmp_path / 'third'}", f"surrogate.prior={tmp_path / 'absent.json'}"])
    with pytest.raises(ConfigError, match="no such parameter"):
        search([*common, f"out={tmp_path / 'fourth'}", f"surrogate.prior={path}", "method=random"])


@pytest.mark.parametrize("name", shipped_priors())
def test_a_prior_that_comes_with_the_package_is_of_use_to_its_model(name: str) -> None:
    config = load_config([f"+model={name}"])
    prior = load_prior(prior_file(name))
    assert prior.table is not None
    assert prior.table.over(make_space_of(config, make_spec(config))) is not None
    assert {"damage", "rank", "unit damage"} <= set(prior.parts)
    assert prior_file("~/mine.json") == Path.home() / "mine.json"
