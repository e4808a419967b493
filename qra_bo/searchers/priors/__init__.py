"""Priors that come with the package, learned from tables of real trials, by name."""

import hashlib
from pathlib import Path

from qra_bo.utils.errors import ConfigError

__all__ = ["prior_file", "prior_sha256", "shipped_priors"]


def shipped_priors() -> dict[str, Path]:
    """Return the file of every prior, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def prior_file(given: str) -> Path:
    """Return the file that ``surrogate.prior`` names: one that comes with the package, or the user's own."""
    return shipped_priors().get(given) or Path(given).expanduser()


def prior_sha256(prior: str | None) -> str | None:
    """Return the hash of the file that ``surrogate.prior`` names; ``None`` where none is given.

    Raises:
        ConfigError: If it can't be read.
    """
    if prior is None:
        return None
    try:
        return hashlib.sha256(prior_file(prior).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"surrogate.prior: {prior} can't be read ({error.strerror}); give a file that python -m "
                          "qra_bo.prior wrote") from error
