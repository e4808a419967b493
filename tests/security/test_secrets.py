"""Secrets of the environment, of URLs and of messages are in no log, journal, status or report."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.cli import app
from qra_bo.study.journal import Journal, read_journal
from qra_bo.utils.errors import DataError
from qra_bo.utils.redact import RedactingFormatter, redact, redact_all

SECRET = "sup3rs3cretvalue"


@pytest.mark.parametrize("text", [
    "postgresql://bob:sup3rs3cretvalue@host/db", "https://hub/x?token=sup3rs3cretvalue&a=1",
    "Authorization: Bearer sup3rs3cretvalue", "hf_sup3rs3cretvalueABC is invalid", "password=sup3rs3cretvalue;",
    "api_key=sup3rs3cretvalue"])
def test_known_forms_are_hidden(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("text", ["training_tokens=3", "nf4", "see https://example.org/a@b", "bits=[2,4]", "token 5"])
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_the_environments_secrets_are_hidden_wherever_they_turn_up(monkeypatch: pytest.MonkeyPatch,
                                                                   tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_API_KEY", "short")
    with Journal(tmp_path) as journal:
        journal.append("header", {"schema_version": 2, "config": {"a": [f"x{SECRET}y", 3]}, "config_sha256": "0"})
        journal.append("warning", {"message": f"401 for {SECRET}"})
    assert SECRET not in (tmp_path / "trials.jsonl").read_text()
    events = read_journal(tmp_path / "trials.jsonl").events
    assert events[0]["config"] == {"a": ["x***y", 3]}
    assert redact("short") == "short"


def test_logs_and_messages_hide_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    record = logging.LogRecord("a", logging.INFO, "", 0, "with %s", (SECRET,), None)
    assert RedactingFormatter("%(message)s").format(record) == "with ***"
    assert app._report(DataError(f"no access with {SECRET}")) == 2
    assert SECRET not in capsys.readouterr().err


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6), lambda s: st.lists(s) |
                    st.dictionaries(st.text(max_size=4), s), max_leaves=12))
def test_values_keep_their_shape(value: object) -> None:
    assert json.dumps(redact_all(value)) == json.dumps(value)
