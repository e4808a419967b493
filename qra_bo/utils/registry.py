"""Names for things that can be chosen: refuses duplicates and explains misses."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from qra_bo.utils.errors import ConfigError, QRABOError, nearest_first

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to entries.

    Args:
        kind: What an entry is, for messages, e.g. ``"method"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register ``entry`` under ``name``.

        Raises:
            QRABOError: If the name is taken: a bug.
        """
        if name in self._entries:
            raise QRABOError(f"the {self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """``add`` as a decorator."""
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            ConfigError: If there is none; the message lists the known ones, nearest first.
        """
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(self.nearest(name))}")
        return self._entries[name]

    def nearest(self, name: str) -> list[str]:
        """All names, those most like ``name`` first, the others in alphabetical order."""
        return nearest_first(name, self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
