"""Rows of the table by name: duplicates are refused, unknown names explained."""

from typing import NoReturn, TypeVar

from qra_bo.utils.errors import ConfigError, QRABOError, nearest_first

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary of entries by name.

    A name that is looked up and absent raises ``ConfigError``, with the known names, nearest first.

    Args:
        kind: Kind of the entries, for messages, e.g. ``"method"``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, entry: T) -> None:
        """Register ``entry`` under ``name``; raises ``QRABOError`` if the name is taken: a bug."""
        if name in self:
            raise QRABOError(f"the {self.kind} {name!r} is registered twice")
        self[name] = entry

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(nearest_first(name, self))}")
