"""Secrets of the environment, of URLs and of messages are in no log, journal, status or report."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from qra_bo.cli import app
from qra_bo.study.journal import Journal, read_journal
from qra_bo.utils.errors import DataError
from qra_bo.utils.redact import RedactingFormatter, redact

SECRET = "sup3rs3cretvalue"


@pytest.mark.parametrize("text", [
    "postgresql://bob:sup3rs3cretvalue@host/db", "https://hub/x?token=sup3rs3cretvalue&a=1",
    "Authorization: Bearer sup3rs3cretvalue", "hf_sup3rs3cretvalueABC is invalid", "password=sup3rs3cretvalue;",
    "api_key=sup3rs3cretvalue", *(f"pg://h:5432/d?a=b&{key}=sup3rs3cretvalue&c=d" for key in (
        "sslpassword", "pwd", "client_secret", "X-Amz-Credential", "sv", "code", "k")),
    "pg://bob:p@sup3rs3cretvalue@host/db", "pg://bob:sup3rs3cretvalue/a@b@host:1/db?x=y", "pg://sup3rs3cretvalue@h",
    "pg://bob:12/sup3rs3cretvalue@host", "pg://bob:?sup3rs3cretvalue@host", "http://h/x#sup3rs3cretvalue",
    "http://h/x#t=sup3rs3cretvalue", "http://h/x?sup3rs3cretvalue", "http://h/x?a=1#sup3rs3cretvalue",
    "pg://h/d?sslmode=on;pwd=sup3rs3cretvalue", "http://sup3rs3cretvalue:x", "x bob:p@sup3rs3cretvalue@host",
    "Server=h;Uid=u;Pwd=sup3rs3cretvalue;", "password='a sup3rs3cretvalue'", "AccountKey=sup3rs3cretvalue=="])
def test_known_forms_are_hidden(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("text", [
    "http://127.0.0.1:8000/v1/chat/completions", "https://hub/org/name@v1/x.json", "hf://datasets/a/b?revision=main",
    "http://[::1]:80/x", "file:///data/my-set.jsonl", "2026-01-02T10:20:30 at layer:3", "eos_token=<|im_end|>"])
def test_what_holds_no_secret_is_shown(text: str) -> None:
    assert redact(text) == text


def test_the_environments_secrets_are_hidden_wherever_they_turn_up(monkeypatch: pytest.MonkeyPatch,
                                                                   tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_API_KEY", "short")
    with Journal(tmp_path) as journal:
        journal.append("header", {"schema_version": 3, "config": {"a": [f"x{SECRET}y", 3]}, "config_sha256": "0"})
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


class Sink:
    """Listener that takes any options."""

    def __init__(self, folder: Path, **options: Any) -> None: ...

    def __call__(self, event: Any) -> None: ...

    def close(self) -> None: ...


VARIABLES = {"WANDB_KEY": "Zq1/xw+Yv==", "ROOT_SECRET_PATH": "/Zq2/xw+Yv==", "PHRASE": "Zq3 horse battery",
             "SHORT": "Zq4", "DB_PASS": "Zq5/a@b:c", "PGHOST": "Zq6.internal", "MAIL_PASSWORD": "/Zq7slash"}
SHAPES = {
    "name_of_a_key": "'${oc.env:WANDB_KEY}'",
    "with_a_slash_first": "'${oc.env:ROOT_SECRET_PATH}'",
    "passphrase": "'${oc.env:PHRASE}'", "short": "'${oc.env:SHORT}'",
    "password_of_a_url": "'pg://bob:${oc.env:DB_PASS}@h/d'",
    "query": "'pg://h/d?host=${oc.env:PGHOST}&sslmode=on'", "of_a_list": "[a,'${oc.env:PHRASE}']",
    "of_another_key": "'${logger.passphrase}'", "default": "'${oc.env:NOT_SET,Zq8default}'",
    "url_with_a_slash": "'pg://bob:Zq9/a@h/d'", "url_with_an_at": "'pg://bob:Zq0@a@h/d'",
    "query_with_a_slash": "'pg://h/d?password=ZqA/a@b&b=1'", "of_the_environment": "'x/Zq7slash'"}


def test_no_shape_of_a_secret_reaches_the_files_of_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    job = ["model=tiny", "oracle=synthetic", "method=random", "effort.max_full_trials=2", "confirm.seeds=2",
           "display=none", f"out={out}", "logger._target_=tests.security.test_secrets.Sink",
           *(f"++logger.{key}={text}" for key, text in SHAPES.items())]
    assert app.main(job) == 0
    written = {path.name: path.read_text(errors="replace") for path in out.iterdir() if path.is_file()}
    assert written.keys() >= {"trials.jsonl", "report.json", "report.html", "status.json", "best.json"}
    assert {name: found for name, text in written.items() if (found := re.findall(r"Zq[0-9A].{9}", text))} == {}
    config = json.loads(written["report.json"])["config"]["logger"]
    assert config["passphrase"] == "${oc.env:PHRASE}"
    assert config["of_a_list"] == ["a", "${oc.env:PHRASE}"]
    assert config["of_another_key"] == "${logger.passphrase}"
    monkeypatch.setenv("PHRASE", "another one")
    assert app.main([*job, "resume=true"]) == 0  # where runs are logged changes no trial


def test_resume_compares_the_values_of_interpolations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    job = ["model=tiny", "oracle=synthetic", "method=random", "effort.max_full_trials=2", "confirm.seeds=2",
           "display=none", f"out={tmp_path / 'run'}", "granularity='${oc.env:GRAIN}'"]
    monkeypatch.setenv("GRAIN", "layer")
    assert app.main(job) == 0
    monkeypatch.setenv("GRAIN", "block")
    assert app.main(job) == 2
    assert "another configuration: the environment gives granularity another value." in capfd.readouterr().err
