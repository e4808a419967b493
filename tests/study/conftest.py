"""What the study's tests share."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test needs no power-cut safety; waiting for the disk was most of its time."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
