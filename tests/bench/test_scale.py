"""The command that measures the driver's scale."""

import pytest

from bench import scale


def test_the_command_searches_as_long_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[str, int, int]] = []
    monkeypatch.setattr(scale, "session", lambda folder, workers, evaluations, *_: searched.append(
        (folder.name, workers, evaluations)))
    monkeypatch.setattr(scale, "publish", lambda *_, **options: None)
    monkeypatch.setattr(scale, "proposals", lambda *_: None)
    monkeypatch.setattr(scale, "targets_of", lambda *_: [])
    scale.main(["--quick"])
    assert searched == [("tenth", 50, 100), ("tenth", 50, 150), ("whole", 50, 1000)]
