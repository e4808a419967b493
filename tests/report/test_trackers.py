"""Trackers log the numbers of the journal; a listener of the user's own gets every event and can't end a run."""

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from qra_bo.report.data import parse_events
from qra_bo.report.trackers import TensorBoard, Tracker, Wandb, make_listener, metrics_of
from qra_bo.study.events import decode
from qra_bo.study.state import Study
from qra_bo.utils.errors import ConfigError, MissingExtraError
from qra_bo.utils.files import check_run_folder
from tests.report.fixtures import failed_alone, make_events, without_mixed

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
HERE = "tests.report.test_trackers"


class Kept(Tracker):
    """A tracker that keeps what it logs."""

    module = "csv"

    def __init__(self, born: datetime | None = LONG_AGO) -> None:
        super().__init__(Path("run"), born)
        self.logged: list[tuple[dict[str, float], int]] = []
        self.parameters: Mapping[str, Any] = {}
        self.finished = False

    def begin(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = parameters

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append((dict(metrics), step))

    def finish(self) -> None:
        self.finished = True


class Own:
    """A listener of a user's own package."""

    events: ClassVar[list[str]] = []
    closed = False

    def __init__(self, folder: Path, suffix: str = "") -> None:
        type(self).events, type(self).closed, self._suffix = [], False, suffix
        self._folder = folder

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._suffix == "fail":
            self.events.append("called")
            raise OSError("quota exceeded")
        self.events.append(event["event"] + self._suffix)

    def close(self) -> None:
        type(self).closed = True


def test_metrics_agree_with_the_report_of_the_journal() -> None:
    events, tracker = make_events(), Kept()
    for event in events:
        tracker(decode(event))
    tracker.close()
    d = parse_events(events)
    steps = [step for _, step in tracker.logged]
    assert steps == list(range(1, len(steps) + 1))  # wandb takes no number for a step that has passed
    trials = [m for m, _ in tracker.logged if "trial/seconds" in m]
    assert [m.get("trial/loss") for m in trials] == [e.loss for e in d.study.trials]
    assert d.study.incumbent is not None
    assert d.study.best_uniform is not None
    assert trials[-1]["search/best_loss"] == d.study.incumbent.loss
    assert trials[-1]["search/difference"] == pytest.approx(d.study.incumbent.loss - d.study.best_uniform.loss)
    assert trials[-1]["search/failures"] == 2
    names = {name for m, _ in tracker.logged for name in m}
    assert names >= {"confirmation/mean", "surrogate/coverage_90", "memory/measured_bytes", "final/loss"}
    curve = [(m["final/step"], m["final/validation_loss"]) for m, _ in tracker.logged if "final/step" in m]
    assert (curve[0], curve[-1], len(curve)) == ((40, 4.12), (320, 3.882), 8)
    assert tracker.parameters["model"] == "smollm2_135m"
    assert tracker.finished


@pytest.mark.parametrize("without", [failed_alone, without_mixed])
def test_a_confirmation_that_compared_nothing_logs_no_difference(without: Callable[[Any], Any]) -> None:
    for events, names in ((without(make_events(wins=False)), []), (make_events(), ["low", "mean", "high"])):
        study = Study(events)
        event = next(e for e in events if e["event"] == "confirmation")
        found = metrics_of(study, decode(event))
        assert {name for m in found for name in m} == {f"confirmation/{name}" for name in names}


def test_earlier_sessions_count_and_are_not_logged_again() -> None:
    events, whole = make_events(), Kept()
    later = Kept(datetime.fromisoformat(events[-4]["time"]))
    for event in events:
        whole(decode(event))
        later(decode(event))
    assert 0 < len(later.logged) < len(whole.logged)
    assert later.logged == whole.logged[-len(later.logged):]


def test_own_listener_gets_every_event_and_is_closed(tmp_path: Path) -> None:
    listener = make_listener({"_target_": f"{HERE}.Own", "suffix": "_x"}, tmp_path)
    assert listener is not None
    for event in make_events():
        listener(decode(event))
    listener.close()
    from tests.report.test_trackers import Own as Loaded

    assert Loaded.events == [f"{e['event']}_x" for e in make_events()]
    assert Loaded.closed
    assert make_listener({"_target_": None}, tmp_path) is None
    assert make_listener({}, tmp_path) is None


def test_failing_listener_is_logged_once_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = make_listener({"_target_": f"{HERE}.Own", "suffix": "fail"}, tmp_path)
    assert listener is not None
    with caplog.at_level(logging.WARNING):
        for event in make_events():
            listener(decode(event))
    from tests.report.test_trackers import Own as Loaded

    assert Loaded.events == ["called"]
    assert f"logger={HERE}.Own failed" in caplog.text
    assert "OSError: quota exceeded" in caplog.text


@pytest.mark.parametrize(("logger", "message"), [
    ({"_target_": "no.such.Listener"}, "no.such.Listener"), ({"_target_": f"{HERE}.Own", "typo": 1}, "typo"),
    ({"_target_": "builtins.dict"}, "built dict")])
def test_wrong_targets_are_refused_before_the_run(logger: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)logger\._target_ must .*{message}"):
        make_listener(logger, tmp_path)


@pytest.mark.parametrize(("name", "more"), [("TensorBoard", {}), ("Wandb", {"project": "p"})])
def test_missing_package_is_named_with_its_extra(name: str, more: dict[str, str], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'qra_bo\[{name.lower()}\]'"):
        make_listener({"_target_": f"qra_bo.report.trackers.{name}", **more}, tmp_path)


def follow(tracker: Tracker) -> Study:
    """A whole journal given to a real tracker."""
    study = Study()
    for event in make_events():
        tracker(decode(event))
        study.add(decode(event))
    tracker.close()
    assert not logging.getLogger("qra_bo").disabled
    return study


def test_tensorboard_reads_it_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = follow(TensorBoard(tmp_path, LONG_AGO))
    reader = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    points = reader.Scalars("search/best_loss")
    assert study.incumbent is not None
    assert points[-1].value == pytest.approx(study.incumbent.loss)


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    follow(Wandb(tmp_path, "p", LONG_AGO))
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"search/best_loss" in file.read_bytes()
    check_run_folder(tmp_path)


def test_wandb_leaves_a_folder_that_can_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*, dir: str, settings: dict[str, Any], **_: Any) -> SimpleNamespace:
        """Make the folders and links that wandb makes."""
        own = Path(dir) / "wandb" / "offline-run-1"
        own.mkdir(parents=True)
        (own / "debug-core.log").symlink_to("/dev/null")
        if settings.get("symlink", True):
            (own.parent / "latest-run").symlink_to(own)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Settings=dict, init=init))
    follow(Wandb(tmp_path, "p", LONG_AGO))
    assert (tmp_path / "wandb" / "offline-run-1").is_dir()
    check_run_folder(tmp_path)
