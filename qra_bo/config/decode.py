"""Plain YAML values into frozen dataclasses, strictly, with every mismatch reported at once."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qra_bo.utils.errors import nearest_first


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the dotted key it is wrong with."""

    key: str
    message: str


def check(cls: type, data: Mapping[str, Any], prefix: str = "") -> list[Problem]:
    """Every key of ``data`` that is unknown, missing, or of the wrong type for the dataclass ``cls``."""
    hints = typing.get_type_hints(cls)
    problems = []
    for key in data:
        if key not in hints:
            problems.append(unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in hints]))
    for name, hint in hints.items():
        key = f"{prefix}{name}"
        if name not in data:
            problems.append(Problem(key, f"{key} is missing."))
        elif dataclasses.is_dataclass(hint):
            if isinstance(data[name], Mapping):
                problems += check(typing.cast(type, hint), data[name], f"{key}.")
            else:
                fields = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(hint))
                problems.append(Problem(key, f"{key} must hold the keys {fields}; got {data[name]!r}."))
        elif not _fits(hint, data[name]):
            problems.append(Problem(key, f"{key} must be {_say(hint, data[name])}; got {_show(data[name])}."))
    return problems


def unknown_key(key: str, known: Iterable[str]) -> Problem:
    """The problem of a key that is not in the schema."""
    ordered, last = nearest_first(key, known), key.rpartition(".")[2]
    if not any(other.startswith(f"{key}.") for other in ordered):  # a value's name without its group: lr for adapter.lr
        ordered.sort(key=lambda other: other.rpartition(".")[2] != last)
    return Problem(key, f"Unknown key {key!r}; nearest: {', '.join(ordered[:3])}.")


def build(cls: type, data: Mapping[str, Any]) -> Any:
    """The dataclass ``cls`` from values that ``check`` found no problem with."""
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hint, data[name]) for name, hint in hints.items()})


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(option, value) for option in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value] if args[0] is str else None
        return items is not None and all(_fits(args[0], item) for item in items)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits_key(args[0], k) and _fits(args[1], v)
                                                  for k, v in value.items())
    if hint is Any:
        return True
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return type(value) is hint


def _fits_key(hint: Any, key: Any) -> bool:
    return str(key).isdigit() if hint is int else isinstance(key, str)


def _convert(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert(next(option for option in args if _fits(option, value)), value)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(args[0], item) for item in items)
    if origin is dict:
        return {(int(k) if args[0] is int else k): _convert(args[1], v) for k, v in value.items()}
    return hint(value) if hint in (float, str) else value


def _say(hint: Any, value: Any) -> str:
    """The rule of ``hint`` in words; choices are listed nearest first."""
    words = []
    for option in _options(hint):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is typing.Literal:
            words.append(f"one of {', '.join(nearest_first(str(value), args))}")
        elif origin is tuple:
            plural = {int: "integers", float: "numbers", str: "texts"}[args[0]]
            words.append(f"a list of {plural}, e.g. {'[2,3,4]' if args[0] is not str else '[a,b]'}")
        elif origin is dict:
            words.append("a mapping from bit-widths to lists of format names" if args[0] is int else "a mapping")
        else:
            words.append({int: "an integer", float: "a finite number", str: "a text", bool: "true or false",
                          types.NoneType: "null"}[option])
    return " or ".join(words)


def _show(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) \
        else repr(value)
