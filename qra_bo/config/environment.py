"""Values of a configuration that variables of the environment give: what is written instead of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from qra_bo.utils.redact import hide

_READ: list[tuple[str, str]] = []
"""Names and values of the variables that were read since the list was last cleared."""


class Resolved(dict[str, Any]):
    """Values of a composed configuration, interpolations resolved.

    Attributes:
        unresolved: By dotted key, the interpolation of every text, or list, that variables of the environment give.
    """

    unresolved: Mapping[str, Any]


def resolved(composed: DictConfig | ListConfig) -> Resolved:
    """Return the values of ``composed``; texts of the environment are hidden from now on in all that is written.

    The model alone stays readable: a run's folder could not be loaded without it.
    """
    values = OmegaConf.to_container(composed, resolve=True)
    out = Resolved({str(key): value for key, value in values.items()} if isinstance(values, dict) else {})
    out.unresolved = dict(_unresolved(composed, "")) if isinstance(composed, DictConfig) else {}
    return out


def _unresolved(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    raw: Any = OmegaConf.to_container(node, resolve=False)
    for key in map(str, node):
        name = f"{prefix}{key}"
        _READ.clear()
        value = node[key]
        if isinstance(value, DictConfig) and not OmegaConf.is_interpolation(node, key):
            yield from _unresolved(value, f"{name}.")
            continue
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if not _READ or not isinstance(plain, str | list):
            continue
        if not name.startswith("model."):
            for variable, text in _READ:
                hide(text, f"${{oc.env:{variable}}}")
        yield name, raw[key]


def _env(key: str, *default: str | None) -> str | None:
    """Return what the resolver ``oc.env`` of OmegaConf returns, and note it."""
    value = oc.env(key, *default)
    if value is not None:
        _READ.append((key, value))
    return value


OmegaConf.register_new_resolver("oc.env", _env, replace=True)
