"""The version, below every package that records it, and those of other packages."""

from collections.abc import Iterable
from importlib import metadata

__version__ = "0.1.0"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the releases of installed packages."""
    return {name: metadata.version(name) for name in packages}
