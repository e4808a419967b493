"""Secrets stay out of what is written down (passwords in URLs, access tokens, what the environment calls secret), and
what could command a terminal out of what is shown."""

import logging
import os
import re
from typing import Any

HIDDEN = "***"
_NAMES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of the shortest secret of the environment that is looked for: shorter ones would hide ordinary words."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Characters that could make a terminal do something, or that can't be encoded."""
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), HIDDEN),
    (re.compile(r"\b(hf|sk|ghp|gho|ghs|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"(?i)\b((?:access_?|auth_?|api_?)?(?:token|password|passwd|secret|signature|sig)|api_?key|access_?key)"
                r"=[^\s&;'\"]+"), rf"\1={HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"))


def redact(text: str) -> str:
    """``text`` with every secret in it hidden."""
    return _redacted(text, _secrets())


def printable(text: str) -> str:
    """``text`` without what a terminal could take for a command, or can't show: names come from strangers too."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def redact_all(value: Any) -> Any:
    """A JSON value with every text in it redacted; keys stay."""
    return _redacted_all(value, _secrets())


def _secrets() -> list[str]:
    """Values of the environment's secrets, the longest first; paths are none."""
    found = (os.environ[name] for name in os.environ if _NAMES.search(name))
    return sorted((v for v in found if len(v) >= _SHORTEST and not v.startswith("/")), key=len, reverse=True)


def _redacted_all(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _redacted(value, secrets)
    if isinstance(value, dict):
        return {k: _redacted_all(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_all(v, secrets) for v in value]
    return value


def _redacted(text: str, secrets: list[str]) -> str:
    if len(text) < _SHORTEST:
        return text
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


class RedactingFormatter(logging.Formatter):
    """A log formatter that hides secrets, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
