"""Values of overrides in Hydra's grammar."""

import re

_PLAIN = re.compile(r"(?:\.{0,2}/|[A-Za-z_])[A-Za-z0-9_/.+-]*")


def override_value(text: str) -> str:
    """Return a text as Hydra reads it back: as it is where it is a plain word or path, else in double quotes."""
    if _PLAIN.fullmatch(text):
        return text
    doubled = re.sub(r'\\+(?="|$)', lambda m: 2 * m[0], text)  # a backslash counts before a quote alone
    return '"{}"'.format(doubled.replace('"', r"\""))
