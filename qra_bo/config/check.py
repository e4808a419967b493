"""Validation of plain values against the schema, with every mismatch as one sentence that says what was expected."""

import builtins
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import is_typeddict

from qra_bo.config.other_names import REMOVED, answer
from qra_bo.utils.errors import nearest_first
from qra_bo.utils.fields import MUST, REFUSED
from qra_bo.utils.formatting import cut
from qra_bo.utils.redact import redact

T = TypeVar("T", bound=BaseModel)
_MUST_BE = {"int_type": "an integer", "float_type": "a finite number", "finite_number": "a finite number",
            "bool_type": "true or false", "string_type": "a text", "greater_than": "above {gt}",
            "greater_than_equal": "at least {ge}", "less_than": "below {lt}", "less_than_equal": "at most {le}",
            "union_tag_invalid": "one of the options {expected_tags}", MUST: "{words}"}
"""What a value must be, by the type of pydantic's error."""
_ITEMS = {int: "integers separated by commas, e.g. [2,4,8]", float: "numbers separated by commas, e.g. [0.5,1]",
          str: "texts separated by commas, e.g. [a,b]"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration.

    Args:
        key: Dotted key, e.g. ``"adapter.lr"``; a list or mapping is named as a whole.
        message: A full sentence: the key, the value that was expected, and the value given where there is one.
    """

    key: str
    message: str


def validated(cls: type[T], raw: Mapping[str, Any]) -> tuple[T | None, list[Problem]]:
    """Return an instance of the schema's ``cls``, or ``None`` and every key that is unknown, missing or out of rule."""
    try:
        return cls.model_validate(dict(raw)), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_problem(cls, raw, e) for e in error.errors()))


def unknown_key(key: str, known: Iterable[str]) -> Problem:
    """Return the problem of a key that is not in the schema; names of other trainers are answered with ours, removed
    keys with what replaces them."""
    if key in REMOVED:
        return Problem(key, f"Key {key!r} was removed: {REMOVED[key]}.")
    if (ours := answer(key)) is not None:
        return Problem(key, f"Unknown key {key!r}; here it is {ours}.")
    ordered, last = nearest_first(key, known), key.rpartition(".")[2]
    if not any(other.startswith(f"{key}.") for other in ordered):  # a value's name without its group: lr for adapter.lr
        ordered.sort(key=lambda other: other.rpartition(".")[2] != last)
    return Problem(key, f"Unknown key {cut(key)!r}; nearest: {', '.join(ordered[:3])}.")


@cache
def fields_of(hint: Any) -> dict[str, Any]:
    """Return the types of the fields of a group by name, of a union's options together; empty for any other type."""
    bare = _bare(hint)
    if is_typeddict(bare) or (isinstance(bare, type) and issubclass(bare, BaseModel)):
        hints = typing.get_type_hints(bare, include_extras=True)
        return {name: hints[name] for name in getattr(bare, "model_fields", hints)}
    return {name: inner for option in options_of(hint) for name, inner in fields_of(option).items()}


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union type; empty for any other."""
    bare = _bare(hint)
    return typing.get_args(bare) if typing.get_origin(bare) in (types.UnionType, Union) else ()


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _problem(cls: type[BaseModel], raw: Mapping[str, Any], error: ErrorDetails) -> Problem:
    """Return one error of pydantic as a problem of a key; a list or mapping is named as a whole."""
    group, *rest = map(str, error["loc"])
    hint, value, kind = fields_of(cls).get(group), raw.get(group), error["type"]
    options = [option for option in options_of(hint) if fields_of(option)]
    fields, leaf = fields_of(hint), rest[1:2] if options else rest[:1]  # pydantic names the option first
    if fields and leaf:
        hint, value = fields.get(leaf[0]), value.get(leaf[0]) if isinstance(value, Mapping) else None
    key = ".".join([group, *leaf] if fields else [group])
    if kind == "extra_forbidden":
        others = [tag for option in options if leaf[0] in fields_of(option) for tag in _tags(option)]
        if others:
            return Problem(key, f"{key} is a key of {' and '.join(f'{group}={tag}' for tag in others)} "
                                "alone; leave it out, or choose that option.")
        return unknown_key(key, [f"{group}.{name}" for name in fields] if leaf else fields_of(cls))
    if kind == "missing":
        return Problem(key, f"{key} is missing.")
    if kind == REFUSED:
        return Problem(key, f"{key}: {error['msg']}.")
    group_of = f"a group of the keys {', '.join(f'{key}.{name}' for name in fields)}" if fields else "a plain value"
    must = _must_be(hint, kind, value) or _MUST_BE.get(kind, group_of).format(**error.get("ctx", {}))
    null = ", or null" if types.NoneType in options_of(hint) else ""
    return Problem(key, f"{key} must be {must}{null}; got {cut(_show(value), 200)}.")


def _must_be(hint: Any, kind: str, value: object) -> str | None:
    """Say what a value of a list, a mapping or a choice must be; ``None`` for all others."""
    options = [_bare(option) for option in options_of(hint) or (hint,)]
    shape = next((option for option in options if typing.get_origin(option) is not None), None)
    match typing.get_origin(shape):
        case builtins.tuple if kind != MUST:
            item = _bare(typing.get_args(shape)[0])
            names = typing.get_origin(item) is typing.Literal
            return f"a list of {f'the names {_choices(item, value)}' if names else _ITEMS.get(item, _ITEMS[str])}"
        case builtins.dict:
            return "a mapping from bit-widths to lists of format names"
        case typing.Literal:
            truth = "true, false, " if bool in options else ""
            return f"one of {truth}{_choices(shape, value)}"
    return None


def _choices(literal: Any, value: object) -> str:
    return ", ".join(nearest_first(str(value), map(str, typing.get_args(literal))))


def _tags(option: Any) -> list[str]:
    """Return the values of ``name`` or ``kind`` that choose an option of a group."""
    return [tag for key in ("kind", "name") for tag in typing.get_args(fields_of(option).get(key))][:1]


def _show(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return redact(repr(list(value) if isinstance(value, tuple) else value))
