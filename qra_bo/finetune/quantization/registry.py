"""Quantiser backends by name; each is imported at its first use."""

import pkgutil
from functools import cache

from qra_bo.finetune.quantization.base import QuantizerBackend
from qra_bo.memory.formats import BACKENDS
from qra_bo.space.space import StorageFormat


def backend_of(fmt: StorageFormat) -> QuantizerBackend:
    """Return the backend that stores ``fmt``."""
    return _backend(fmt.backend)


@cache
def _backend(name: str) -> QuantizerBackend:
    backend: QuantizerBackend = pkgutil.resolve_name(BACKENDS[name])()
    return backend
