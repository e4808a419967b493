"""Text forms of numbers: a true minus, a sign where it matters, a dash for none."""

MINUS, DASH = "\u2212", "\u2013"


def signed(value: float, digits: int = 4) -> str:
    """With its sign, a true minus: ``−0.0120``, ``+0.0031``."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def number(value: float | None, digits: int = 4) -> str:
    """A number, or an en dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)
