"""Files of learned exchange rates: the user's, and those that come with the package, by name."""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat, PositiveFloat, PositiveInt

from qra_bo.searchers.rates.model import NAMES, Rates
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import model_of
from qra_bo.utils.files import strict_json, user_path

SCHEMA_VERSION = 5
_STORED = model_of(sources=list[str], slopes=dict[str, Annotated[FiniteFloat, Ge(0)]],
                   covariance=list[list[FiniteFloat]], error=Annotated[FiniteFloat, Ge(0)], tokens=PositiveInt,
                   lr_scale=PositiveFloat)
"""``Rates`` as a file holds them."""


def shipped_rates() -> dict[str, Path]:
    """Return the file of every set of rates that comes with the package, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def rates_file(given: str) -> Path:
    """Return the file that ``surrogate.rates`` names: one that comes with the package, or the user's own."""
    return shipped_rates().get(given) or user_path(given)


def _read(given: str) -> bytes:
    try:
        return rates_file(given).read_bytes()
    except OSError as error:
        raise ConfigError(f"{given}, what earlier runs taught, can't be read ({error.strerror}); give surrogate.rates "
                          "a file of exchange rates") from error


def rates_sha256(given: str) -> str:
    """Return the hash of the file that ``surrogate.rates`` names; raises ``ConfigError`` if it can't be read."""
    return hashlib.sha256(_read(given)).hexdigest()


def load_rates(given: str) -> Rates:
    """Read rates from a file (``bench.rates.save_rates`` writes them), or those that come with the package by name.
    Raises ``ConfigError`` if the file can't be read or holds no rates."""
    try:
        data = strict_json(_read(given))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
        stored = _STORED.model_validate(data)
        covariance = np.array(stored.covariance)
        if covariance.shape != (len(NAMES), len(NAMES)) or np.linalg.eigvalsh(covariance).min() < -1e-12:
            raise ValueError(f"the covariance must be positive and {len(NAMES)} x {len(NAMES)}")
        return Rates(np.array([stored.slopes[name] for name in NAMES]), covariance, stored.error, stored.tokens,
                     tuple(stored.sources), stored.lr_scale)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{rates_file(given)} holds no exchange rates: {error}") from error
