"""Named options that refuse duplicates and explain unknown names."""

from collections.abc import Callable
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

    def add(self, name: str, entry: T) -> T:
        """Register ``entry`` under ``name``.

        Raises:
            QRABOError: If the name is taken: a bug.
        """
        if name in self:
            raise QRABOError(f"the {self.kind} {name!r} is registered twice")
        self[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return ``add`` as a decorator."""
        return lambda entry: self.add(name, entry)

    def nearest(self, name: str) -> list[str]:
        """All names, those most like ``name`` first, the others in alphabetical order."""
        return nearest_first(name, self)

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(self.nearest(name))}")
