"""Text forms of values: numbers with a true minus, long texts cut, overrides in Hydra's grammar."""

import re

MINUS, DASH = "\u2212", "\u2013"
_PLAIN = re.compile(r"(?:\.{0,2}/|[A-Za-z_])[A-Za-z0-9_/.+-]*")


def signed(value: float, digits: int = 4) -> str:
    """With its sign, a true minus: ``−0.0120``, ``+0.0031``."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def number(value: float | None, digits: int = 4) -> str:
    """A number, or an en dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def cut(value: object, most: int = 80) -> str:
    """Return a value of the user's as text for a message: at most ``most`` characters of it."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most - 3]}..."


def override_value(text: str) -> str:
    """Return a text as Hydra reads it back: as it is where it is a plain word or path, else in double quotes."""
    if _PLAIN.fullmatch(text):
        return text
    doubled = re.sub(r'\\+(?="|$)', lambda m: 2 * m[0], text)  # a backslash counts before a quote alone
    return '"{}"'.format(doubled.replace('"', r"\""))
