"""Searchers from their configuration: ``_target_`` and keyword arguments, as in ``conf/method``."""

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate

from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.utils.errors import ConfigError, nearest_first

_GIVEN = ("problem",)
"""Parameters that do not come from the configuration."""


def make_searcher(config: Mapping[str, Any], problem: SearchProblem) -> Searcher:
    """Construct the searcher that ``_target_`` names, with the other keys as keyword arguments.

    ``_target_`` is imported: the configuration must be the user's own, never one read from the folder of a run.

    Args:
        config: ``_target_``, the dotted path of a class or function, and its options; options may have ``_target_``
            themselves.
        problem: What is searched.

    Raises:
        ConfigError: If a target can't be imported, or an option is unknown or out of its range.
    """
    if "_target_" not in config:
        raise ConfigError("method._target_ must be the dotted path of a searcher's class or function; it is missing")
    problems = list(_problems("method", config))
    if problems:
        raise ConfigError(problems)
    made = instantiate({**config, "_partial_": True}, _convert_="all")
    try:
        inspect.signature(made).bind(problem)
    except TypeError as error:
        raise ConfigError(f"method: {config['_target_']} can't be called with the given options: {error}") from error
    searcher: Searcher = made(problem)
    return searcher


def _problems(where: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for every target that can't be imported and every unknown option, at any depth."""
    try:
        parameters = inspect.signature(pkgutil.resolve_name(config["_target_"])).parameters
    except Exception as error:  # an import may raise anything
        yield f"{where}._target_: {config['_target_']!r} can't be imported: {error}"
        return
    known = [name for name in parameters if name not in _GIVEN]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in config.items():
        if not key.startswith("_") and key not in known and not takes_any:
            yield (f"{where}.{key}: {config['_target_']} has no such parameter; known: "
                   f"{', '.join(nearest_first(key, known)) or 'none'}")
        elif isinstance(value, Mapping) and "_target_" in value:
            yield from _problems(f"{where}.{key}", value)
