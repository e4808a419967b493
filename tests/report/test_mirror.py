"""The copy for optuna-dashboard is complete, made once, and its failure leaves the search unchanged."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from qra_bo.config import load_config
from qra_bo.execution.base import InProcessExecutor
from qra_bo.report.mirror import OptunaMirror, mirror_run, storage_url, study_name
from qra_bo.runs import main as runs
from qra_bo.study.engine import RunOutcome
from qra_bo.study.journal import read_journal
from qra_bo.utils.errors import ConfigError, MissingExtraError
from tests.study import problem
from tests.study.oracles import PlantedOracle
from tests.study.problem import comparable

optuna = pytest.importorskip("optuna", reason="the mirror needs the extra 'optuna'")
pytestmark = pytest.mark.filterwarnings("ignore::Warning:optuna", "ignore::Warning:sqlalchemy")


def run(folder: Path, *listeners: Any) -> RunOutcome:
    (folder.parent / "faults").mkdir(exist_ok=True)
    oracle = PlantedOracle(faults={"14": "raise"}, folder=str(folder.parent / "faults"))
    return problem.run(folder, InProcessExecutor(oracle), listeners=listeners, effort__max_full_trials=14)


def trials(url: str, folder: Path) -> Any:
    name = study_name(folder, read_journal(folder / "trials.jsonl").events[0])
    return optuna.load_study(storage=url, study_name=name)


def test_a_live_run_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.report.mirror.LAST_SECONDS", 300.0)
    folder = tmp_path / "run"
    url = storage_url("sqlite", folder)
    with OptunaMirror(url, folder) as mirror:
        outcome = run(folder, mirror)
    assert not mirror.failed
    study = trials(url, folder)
    states = [t.state.name for t in study.trials]
    searched = [e for e in outcome.study.trials if e.stage in ("baseline", "evolution") or
                (e.stage == "calibration" and e.spec.lr_scale == outcome.study.lr_scale)]
    assert [t.user_attrs["key"] for t in study.trials] == [e.spec.key for e in searched]
    assert states.count("FAIL") == 1
    assert states.count("PRUNED") == sum(e.ok and e.fidelity.value == "low" for e in searched)
    incumbent = outcome.study.incumbent
    assert incumbent is not None
    assert study.best_value == min(p.loss for p in outcome.study.points if p.loss is not None) == incumbent.loss
    unit = outcome.study.header["units"][0]
    best = study.best_trial
    assert best.params[f"{unit} format"] == incumbent.allocation.formats[0]
    assert best.params[f"{unit} rank"] == incumbent.allocation.ranks[0]
    assert study.user_attrs["winner"] == outcome.winner.fingerprint
    assert study.user_attrs["model"] == "tiny"


def test_what_is_there_is_not_copied_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "run"
    folder.parent.mkdir()
    run(folder)
    url = storage_url("sqlite", folder)
    copied = mirror_run(folder, url)
    assert copied == mirror_run(folder, url) == len(trials(url, folder).trials)
    assert runs(["mirror", str(folder.parent)]) == 0
    assert f"{copied} trials" in capsys.readouterr().out
    assert len(trials(url, folder).trials) == copied
    assert runs(["mirror", str(folder.parent), "--storage", "sqlite:////proc/nowhere/x.db"]) == 2
    assert "can't take the run" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["broken", "hanging"])
def test_a_storage_that_fails_does_not_touch_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        caplog: pytest.LogCaptureFixture, trouble: str) -> None:
    (tmp_path / "a").mkdir()
    plain = run(tmp_path / "a" / "run")
    monkeypatch.setattr("qra_bo.report.mirror.LAST_SECONDS", .2)

    def create(**kwargs: Any) -> Any:
        if trouble == "hanging":
            time.sleep(3)
        raise ConnectionError("could not connect to postgresql://me:hunter2secret@db/x\nmore")

    monkeypatch.setattr(optuna, "create_study", create)
    (tmp_path / "b").mkdir()
    folder = tmp_path / "b" / "run"
    with caplog.at_level(logging.WARNING), OptunaMirror("postgresql://me:hunter2secret@db/x", folder) as mirror:
        outcome = run(folder, mirror)
    assert comparable(outcome.best) == comparable(plain.best)
    assert "hunter2secret" not in caplog.text
    assert ("the mirror stops, and the run goes on" in caplog.text) == (trouble == "broken")
    assert ("did not take the last events" in caplog.text) == (trouble == "hanging")


def test_mirror_setting_is_checked_and_not_hashed(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["+model=tiny", "data=tiny"]
    plain = load_config(overrides)
    assert plain.mirror is None
    assert load_config([*overrides, "mirror=sqlite"]).config_sha256 == plain.config_sha256
    with pytest.raises(ConfigError, match="mirror must be sqlite, the URL"):
        load_config([*overrides, "mirror=somewhere"])
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qra_bo\[optuna\]'"):
        OptunaMirror("sqlite://", tmp_path)
