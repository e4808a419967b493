"""Quantiser backends by name; each is imported when it is first asked for."""

import importlib
from functools import cache

from qra_bo.finetune.quantization.base import QuantizerBackend
from qra_bo.space.formats import StorageFormat
from qra_bo.utils.errors import ConfigError, nearest_first

_FACTORIES: dict[str, tuple[str, str]] = {}


def register_backend(name: str, module: str, attribute: str) -> None:
    """Make ``module.attribute`` (a class without arguments) the backend called ``name``.

    Raises:
        ConfigError: If the name is taken by another backend.
    """
    if _FACTORIES.get(name, (module, attribute)) != (module, attribute):
        raise ConfigError(f"the quantiser backend {name!r} is registered already, as {'.'.join(_FACTORIES[name])}; "
                          "choose another name")
    _FACTORIES[name] = (module, attribute)


def backend_names() -> tuple[str, ...]:
    """Every registered backend."""
    return tuple(sorted(_FACTORIES))


@cache
def get_backend(name: str) -> QuantizerBackend:
    """The backend called ``name``.

    Raises:
        ConfigError: If it is unknown; the message lists the known ones, nearest first.
    """
    if name not in _FACTORIES:
        known = ", ".join(nearest_first(name, _FACTORIES))
        raise ConfigError(f"unknown quantiser backend {name!r}; known, nearest first: {known}")
    module, attribute = _FACTORIES[name]
    backend: QuantizerBackend = getattr(importlib.import_module(module), attribute)()
    return backend


def backend_of(fmt: StorageFormat) -> QuantizerBackend:
    """The backend that stores ``fmt``."""
    return get_backend(fmt.backend)


register_backend("bitsandbytes", "qra_bo.finetune.quantization.bnb", "BitsAndBytesBackend")
register_backend("hqq", "qra_bo.finetune.quantization.half_quadratic", "HQQBackend")
register_backend("none", "qra_bo.finetune.quantization.unquantised", "UnquantisedBackend")
register_backend("reference", "qra_bo.finetune.quantization.reference", "ReferenceBackend")
