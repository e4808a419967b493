"""The command that measures the driver's scale."""

import pytest

from bench import scale


def test_the_command_searches_as_long_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[str, int, int]] = []
    monkeypatch.setattr(scale, "session", lambda folder, workers, evaluations, *_: searched.append(
        (folder.name, workers, evaluations)))
    monkeypatch.setattr(scale, "publish", lambda *_, **options: None)
    scale.main(["--only", "search", "--evaluations", "200", "--workers", "4"])
    assert searched == [("tenth", 4, 20), ("tenth", 4, 24), ("whole", 4, 200)]
