"""What trackers are told follows from the journal; each tracker's own reader finds it again."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qra_bo.report import loggers
from qra_bo.report.data import parse_events
from qra_bo.report.loggers import SearchLogger, metrics_of
from qra_bo.report.sinks import SINKS
from qra_bo.study.state import Study
from qra_bo.utils.errors import ConfigError, MissingExtraError
from tests.report.fixtures import make_events

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, float], int]] = []
        self.closed = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.told.append((dict(metrics), step))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(name="kept")
def make_kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(loggers, "SINKS", {"kept": lambda folder, project, where: lambda parameters: kept})
    return kept


def test_metrics_agree_with_the_report_of_the_same_journal(kept: Kept, tmp_path: Path) -> None:
    events = make_events()
    logger = SearchLogger("kept", tmp_path, "p", None, LONG_AGO)
    for event in events:
        logger(event)
    d = parse_events(events)
    evaluations = [(m, step) for m, step in kept.told if "evaluation/seconds" in m]
    assert [step for _, step in evaluations] == [e.id for e in d.trials]
    assert [m.get("evaluation/loss") for m, _ in evaluations] == [e.loss for e in d.trials]
    last = evaluations[-1][0]
    assert d.incumbent is not None
    assert d.best_uniform is not None
    assert last["search/best_loss"] == d.incumbent.loss
    assert last["search/difference"] == pytest.approx(d.incumbent.loss - d.best_uniform.loss)
    assert last["search/failures"] == 2
    names = {name for m, _ in kept.told for name in m}
    assert names >= {"confirmation/mean", "surrogate/coverage_90", "memory/measured_mb", "final/loss"}
    assert kept.closed == 1


def test_earlier_sessions_are_not_told_again(kept: Kept, tmp_path: Path) -> None:
    events = make_events()
    born = datetime.fromisoformat(events[20]["time"])
    logger = SearchLogger("kept", tmp_path, "p", None, born)
    for event in events:
        logger(event)
    seen = sum(e["event"] == "trial" for e in events[:20])
    assert kept.told[0][1] == seen + 1


def test_a_tracker_that_fails_is_warned_of_once_and_left_alone(kept: Kept, tmp_path: Path,
                                                              caplog: pytest.LogCaptureFixture,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(metrics: Mapping[str, float], step: int) -> None:
        calls.append(step)
        raise OSError("quota exceeded")

    monkeypatch.setattr(kept, "log", fail)
    logger = SearchLogger("kept", tmp_path, "p", None, LONG_AGO)
    with caplog.at_level(logging.WARNING):
        for event in make_events():
            logger(event)
    assert len(calls) == 1
    assert "logger=kept failed and is left alone from here on: OSError: quota exceeded" in caplog.text


def test_events_without_numbers_add_none() -> None:
    study = Study()
    events = make_events()
    for event in events:
        study.add(event)
        if event["event"] in ("header", "stage", "profile", "warning", "end"):
            assert metrics_of(study, event) == {}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    for module in ("torch.utils.tensorboard", "mlflow.tracking", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'qra_bo\[{name}\]'"):
        SINKS[name](tmp_path, "p", None)
    with pytest.raises(ConfigError, match="known: tensorboard"):
        SINKS["tensorbord"](tmp_path, "p", None)


def told(name: str, folder: Path) -> dict[str, Any]:
    """A whole journal told to a real tracker; the last evaluation's metrics."""
    folder.mkdir()
    logger, events = SearchLogger(name, folder, "p", None, LONG_AGO), make_events()
    study = Study()
    for event in events:
        logger(event)
        study.add(event)
    assert not logging.getLogger("qra_bo").disabled
    return {"search/best_loss": study.incumbent.loss if study.incumbent else None, "n": len(study.trials)}


def test_tensorboard_reads_it_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = told("tensorboard", tmp_path / "run")
    reader = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    points = reader.Scalars("search/best_loss")
    assert points[-1].value == pytest.approx(wanted["search/best_loss"])
    assert points[-1].step == wanted["n"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_it_again_and_a_resumed_run_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    wanted = told("mlflow", tmp_path / "run")
    SINKS["mlflow"](tmp_path / "run", "p", None)({}).close()
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("p")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["search/best_loss"] == pytest.approx(wanted["search/best_loss"])
    assert run.data.params["model"] == "smollm2_135m"


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    told("wandb", tmp_path / "run")
    [file] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"search/best_loss" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "run" / "trackio"))  # read where the package is first imported
    pytest.importorskip("trackio", reason="the extra 'trackio' is not installed")
    told("trackio", tmp_path / "run")
    files = [p for p in (tmp_path / "run" / "trackio").rglob("*") if p.is_file()]
    assert any(b"search/best_loss" in p.read_bytes() for p in files)
