"""Priors learned from earlier studies: closed forms, their file, and the search that uses them."""

import math
from pathlib import Path

import numpy as np
import pytest

from qra_bo import prior as command
from qra_bo.api import search
from qra_bo.searchers.baselines import RandomSearch
from qra_bo.searchers.priors import prior_file, shipped_priors
from qra_bo.searchers.structured.features import build_components
from qra_bo.searchers.structured.rates import Rates
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.searchers.structured.transfer import (
    LEAST_SPREAD,
    MOST_SPREAD,
    PartPrior,
    Prior,
    combine,
    fitted_scales,
    lesson_of,
    load_prior,
    save_prior,
    with_prior,
)
from qra_bo.utils.errors import ConfigError, JournalError
from tests.conformance.searcher import make_problem, play, proposals_of


def test_scales_combine_as_geometric_means_with_bounded_spread() -> None:
    found = combine([{"quantization_sensitivity": 0.2, "rank": 1.0}, {"quantization_sensitivity": 0.8}])
    assert found["quantization_sensitivity"].scale == pytest.approx(0.4)
    between = math.log(4) / math.sqrt(2)
    spread = min(math.hypot(between, LEAST_SPREAD), MOST_SPREAD)
    assert found["quantization_sensitivity"].spread == pytest.approx(spread)
    assert found["rank"] == PartPrior(1.0, LEAST_SPREAD)


def with_parts(**parts: PartPrior) -> Prior:
    return Prior(Rates(np.ones(3), np.eye(3), 0.01, 24, 1), parts, 1.0, ("a run",))


def test_prior_survives_its_file_and_malformed_files_are_refused(tmp_path: Path) -> None:
    path, prior = tmp_path / "prior.json", with_parts(quantization_sensitivity=PartPrior(0.3, 0.5))
    save_prior(prior, path)
    assert load_prior(str(path)).parts == prior.parts
    text = path.read_text()
    for changed, said in (("{", "holds no prior"), (text.replace('"schema_version": 3', '"schema_version": 9'), "is 9"),
                          (text.replace("0.3", "-1"), "greater than 0")):
        path.write_text(changed)
        with pytest.raises(ConfigError, match=said):
            load_prior(str(path))
    with pytest.raises(ConfigError, match="can't be read"):
        load_prior(str(tmp_path / "absent.json"))


def test_learned_priors_apply_to_their_parts_alone() -> None:
    problem, _ = make_problem()
    before = build_components(problem)
    part = "quantization_sensitivity"
    after = with_prior(before, {part: PartPrior(0.123, 0.4), "of another method": PartPrior(1.0, 1.0)})
    assert [(c.scale, c.spread) for c in after if c.name == part] == [(0.123, 0.4)]
    assert [c for c in after if c.name != part] == [c for c in before if c.name != part]


def test_scales_of_one_study_change_the_next_search(tmp_path: Path) -> None:
    problem, oracle = make_problem()
    told = [e for _, told in play(RandomSearch(problem), problem, oracle, 16) for e in told]
    assert fitted_scales(problem, told[:5]) is None
    scales = fitted_scales(problem, told)
    assert scales is not None
    assert set(scales) == {c.name for c in build_components(problem)}
    path = tmp_path / "prior.json"
    save_prior(with_parts(**{name: PartPrior(10 * part.scale, part.spread)
                             for name, part in combine([scales]).items()}), path)
    plain, taught = (StructuredSearch(problem, n_prior=0, prior=prior)
                     for prior in (None, str(path)))
    for searcher in (plain, taught):
        searcher.tell(told)
    first, second = plain._fitted(), taught._fitted()
    assert first is not None
    assert second is not None
    assert not np.allclose(first.predict(first.rows)[0], second.predict(second.rows)[0])
    assert len(proposals_of(play(taught, problem, oracle, 4))) == 4


def test_runs_whose_folders_have_one_name_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, oracle = make_problem()
    told = [e for _, told in play(RandomSearch(problem), problem, oracle, 12) for e in told]
    lesson = lesson_of(problem, told, 1.0)
    monkeypatch.setattr(command, "lesson_of_run", lambda folder: lesson)
    path, folders = tmp_path / "prior.json", ["first/0", "second/0", "second/1", "third"]
    assert command.main([*folders, "--out", str(path)]) == 0
    learned = load_prior(str(path))
    assert learned.rates.studies == 4
    assert learned.sources == ("first/0", "second/0", "1", "third")


def test_prior_of_finished_runs_is_used_by_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4", "display=none", "confirm.seeds=0"]
    run = search([*common, f"out={tmp_path / 'first'}", "effort=quick", "effort.max_full_trials=20",
                  "effort.stop=null", "adapter.lr=0.004", "calibrate.lr_scales=[1.0]"])
    path = tmp_path / "prior.json"
    assert command.main([str(run.folder), "--out", str(path)]) == 0
    assert "quantization_sensitivity" in load_prior(str(path)).parts
    assert load_prior(str(path)).lr_scale == 2.0  # of the trainer's 0.002, which another run takes
    taught = search([*common, f"out={tmp_path / 'second'}", "effort=quick", f"surrogate.prior={path}"])
    assert taught.best["loss"] < 10.0
    same = [*common, f"out={tmp_path / 'second'}", "effort=quick", f"surrogate.prior={path}"]
    held = path.read_bytes()
    save_prior(with_parts(quantization_sensitivity=PartPrior(0.2, 0.5)), path)
    with pytest.raises(JournalError, match=r"surrogate\.prior has changed.*Restore it"):
        search(same)
    path.write_bytes(held)
    assert search(same).best == taught.best
    assert command.main([str(tmp_path), "--out", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"surrogate\.prior must name a file"):
        search([*common, f"out={tmp_path / 'third'}", f"surrogate.prior={tmp_path / 'absent.json'}"])
    with pytest.raises(ConfigError, match="takes none"):
        search([*common, f"out={tmp_path / 'fourth'}", f"surrogate.prior={path}", "method=random"])


@pytest.mark.parametrize("name", shipped_priors())
def test_shipped_prior_covers_the_parts(name: str) -> None:
    known = {c.name for c in build_components(make_problem()[0])}
    prior = load_prior(name)
    assert known == set(prior.parts)
    assert prior.rates.slopes.min() > 0
    assert prior_file("~/mine.json") == Path.home() / "mine.json"
