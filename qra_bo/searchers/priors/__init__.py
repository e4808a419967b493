"""Priors that come with the package, learned from tables of real trials, by name."""

import hashlib
from pathlib import Path

from qra_bo.utils.errors import ConfigError

__all__ = ["prior_file", "prior_sha256", "read_prior", "shipped_priors"]


def shipped_priors() -> dict[str, Path]:
    """Return the file of every prior, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def prior_file(given: str) -> Path:
    """Return the file that ``surrogate.prior`` names: one that comes with the package, or the user's own."""
    return shipped_priors().get(given) or Path(given).expanduser()


def read_prior(prior: str) -> bytes:
    """Return what the file that ``surrogate.prior`` names holds; raises ``ConfigError`` if it can't be read."""
    try:
        return prior_file(prior).read_bytes()
    except OSError as error:
        raise ConfigError(f"{prior}, what earlier runs taught, can't be read ({error.strerror}); give surrogate.prior "
                          "and surrogate.rates a file that python -m qra_bo.prior wrote") from error


def prior_sha256(prior: str | None) -> str | None:
    """Return the hash of the file that ``surrogate.prior`` names (see ``read_prior``); ``None`` where none is given."""
    return None if prior is None else hashlib.sha256(read_prior(prior)).hexdigest()
