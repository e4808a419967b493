"""A listener of the user's own gets every event and can't end a run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qra_bo.pipeline.listeners import OwnListener
from qra_bo.study.lines import decode
from qra_bo.utils.errors import ConfigError
from tests.report.fixtures import make_events

HERE = "tests.pipeline.test_listeners"


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


def test_own_listener_gets_every_event_and_is_closed(tmp_path: Path) -> None:
    listener = OwnListener({"_target_": f"{HERE}.Own", "suffix": "_x"}, tmp_path)
    for event in make_events():
        listener(decode(event))
    listener.close()
    from tests.pipeline.test_listeners import Own as Loaded

    assert Loaded.events == [f"{e['event']}_x" for e in make_events()]
    assert Loaded.closed


def test_failing_listener_is_logged_once_and_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = OwnListener({"_target_": f"{HERE}.Own", "suffix": "fail"}, tmp_path)
    with caplog.at_level(logging.WARNING):
        for event in make_events():
            listener(decode(event))
    from tests.pipeline.test_listeners import Own as Loaded

    assert Loaded.events == ["called"]
    assert f"logger={HERE}.Own failed" in caplog.text
    assert "OSError: quota exceeded" in caplog.text


@pytest.mark.parametrize(("logger", "message"), [
    ({"_target_": "no.such.Listener"}, "no.such.Listener"), ({"_target_": f"{HERE}.Own", "typo": 1}, "typo"),
    ({"_target_": "builtins.dict"}, "built dict")])
def test_wrong_targets_are_refused_before_the_run(logger: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)logger\._target_ must .*{message}"):
        OwnListener(logger, tmp_path)
