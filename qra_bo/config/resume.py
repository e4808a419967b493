"""Which keys of the configuration may change between a run and its continuation; all others decide its results.

A name that ends in a dot stands for all keys of a group.
"""

from collections.abc import Mapping
from typing import Any

HARMLESS = frozenset({
    "task", "out", "resume", "display", "allocation", "max_hours", "search.force", "logger.", "executor.", "effort.",
    "memory.format", "eval.tasks", "eval.limit", "export.", "worker."})
"""They bound a run, show it, or use its results: no finished trial would come out otherwise."""
UNSAID = frozenset({"out", "resume"})
"""Harmless keys that name the run and ask for its continuation."""


def is_harmless(key: str) -> bool:
    """Return whether ``key``, dotted, or a group that holds it is harmless."""
    return key in HARMLESS or f"{key.partition('.')[0]}." in HARMLESS


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    if not isinstance(data, Mapping):
        return {prefix: data}
    return {name: leaf for key, value in data.items()
            for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items()}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between nested values, in words; keys that one side lacks are of another release."""
    old, new = flatten(before), flatten(now)
    return [f"{key} was {old[key]!r} and is {new[key]!r}" for key in old if key in new and old[key] != new[key]]


def of_the_result(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the nested values of a configuration without those that are harmless."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = of_the_result(value, f"{prefix}{key}.")
            kept |= {key: inner} if inner or not value else {}
        elif not is_harmless(f"{prefix}{key}"):
            kept[key] = value
    return kept


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, harmless: bool) -> list[tuple[str, Any, Any]]:
    """Return key and both values where two configurations differ, of the harmless keys or of all others; a value that
    one of them lacks is ``"(absent)"``."""
    old, new = flatten(before), flatten(now)
    return [(key, old.get(key, "(absent)"), new.get(key, "(absent)")) for key in sorted(old.keys() | new.keys())
            if is_harmless(key) == harmless and old.get(key, "(absent)") != new.get(key, "(absent)")]
