"""Redaction of secrets (passwords in URLs, access tokens, secrets of the environment) in everything that is written,
and of control characters in everything that is shown."""

import logging
import os
import re
from typing import Any

HIDDEN = "***"
_NAMES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$|"
                    r"(?<=_)(KEY|PASS|PWD|AUTH|DSN)$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of the shortest secret of the environment that is hidden: shorter ones would hide ordinary words."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
SHOWN = frozenset({"revision", "sslmode"})
"""Parameters whose values are shown in a URL, beside its scheme, host, port and path."""
_URL = re.compile(r"(?<=://)\S+")
_HOST = re.compile(r"[\w.~-]*(?::\d*)?|\[[\da-fA-F:.]*\](?::\d*)?")
_PATTERNS = (
    (re.compile(r"(?<![^\s'\"=,(\[])[\w.%+-]+:(?!//)\S{1,200}(?=@[\w.-])"), HIDDEN),  # user:password@host
    (re.compile(r"\b(hf|sk|ghp|gho|ghs|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"(?i)((?:\b|access_?|auth_?|api_?)token|password|passwd|passphrase|pwd|secret|signature|\bsig|"
                r"(?:api|access|private|account)_?key)=(?:'[^']*'|\"[^\"]*\"|[^\s&;'\"]+)"), rf"\1={HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"))


def _shown_url(match: re.Match[str]) -> str:
    """Return what may be shown of a URL after its scheme. A password may hold any character, a slash too."""
    text, user = match[0], ""
    if not re.fullmatch(r"[\w.~-]*", re.split("[/?#]", text, maxsplit=1)[0]) and "@" in text:
        text, user = text.rpartition("@")[2], f"{HIDDEN}@"
    place, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", text).groups()  # type: ignore[union-attr]
    if not _HOST.fullmatch(place.partition("/")[0]):
        place = HIDDEN
    pairs = [(name, equals, value if name in SHOWN else HIDDEN) if equals and re.fullmatch(r"[\w.-]+", name)
             else (HIDDEN,) for name, equals, value in (pair.partition("=") for pair in query.split("&"))]
    return user + place + mark + ("&".join("".join(pair) for pair in pairs) if mark else "")


_HIDDEN_TEXTS: dict[str, str] = {}
"""Texts that are hidden in this process, and what is shown instead."""


def hide(text: str, shown: str) -> None:
    """Show ``shown`` instead of ``text`` from now on, unless that is too short to be told from ordinary words, or a
    file or folder, which messages have to name."""
    if len(text) >= _SHORTEST and not _is_path(text):
        _HIDDEN_TEXTS[text] = shown


def _is_path(text: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(text))
    except ValueError:  # a null character
        return False


def printable(text: str) -> str:
    """Replace characters that could command a terminal or that can't be encoded."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def redact(text: str) -> str:
    """Hide every secret in ``text``."""
    return str(redact_all(text))


def redact_all(value: Any) -> Any:
    """Hide every secret in the texts of a JSON value; keys stay."""
    secrets = _HIDDEN_TEXTS | {v: HIDDEN for name, v in os.environ.items() if _NAMES.search(name)
                               and len(v) >= _SHORTEST and v not in _HIDDEN_TEXTS and not _is_path(v)}
    return _redacted(value, sorted(secrets.items(), key=lambda item: len(item[0]), reverse=True))


def _redacted(value: Any, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {k: _redacted(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(v, secrets) for v in value]
    if not isinstance(value, str) or len(value) < _SHORTEST:
        return value
    for secret, shown in secrets:
        value = value.replace(secret, shown)
    value = _URL.sub(_shown_url, value)
    for pattern, shown in _PATTERNS:
        value = pattern.sub(shown, value)
    return value


class RedactingFormatter(logging.Formatter):
    """A log formatter that hides secrets, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
