"""Command-line overrides: small kindnesses before Hydra sees them, and every mistake in them named at once."""

import dataclasses
import functools
import importlib.resources
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qra_bo.config.decode import Problem, unknown_key
from qra_bo.config.schema import RunConfig
from qra_bo.utils.errors import nearest_first

DEFAULT_MODEL = "smollm2_135m"
OF_ONES_OWN = {"model": " Any other decoder: +model=hf model.path=FOLDER-or-ORG/NAME.",
               "data": " A text of your own: data=jsonl data.path=FILE."}
"""By group, how to name what comes with no file of that group."""
_UNIFORM = re.compile(r"(?<!['\"\w])uniform\s*:\s*\d+\s*,\s*\d+(?!['\"\w])", re.IGNORECASE)
_TAKES_UNIFORM = re.compile(r"^(\+{0,2})(budget|allocation)=")
_MODEL = re.compile(r"^(\+{0,2})model=")


@functools.cache
def groups() -> dict[str, tuple[str, ...]]:
    """Every config group and its options."""
    found = {}
    for folder in importlib.resources.files("conf").iterdir():
        if folder.is_dir() and folder.name not in ("hydra", "__pycache__"):
            names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
            found[folder.name] = tuple(names)
    return found


@functools.cache
def model_keys() -> tuple[str, ...]:
    """Keys of a ``conf/model`` node."""
    text = importlib.resources.files("conf").joinpath("model", "hf.yaml").read_text(encoding="utf-8")
    return tuple(str(key) for key in OmegaConf.create(text))


def normalise(overrides: Iterable[str]) -> list[str]:
    """Accept ``model=NAME`` like ``+model=NAME``, name the embedded default, quote ``uniform:BITS,RANK``.

    A key of the schema may be given with or without ``+``. What is no override (a flag) passes as it is.
    """
    out = []
    for text in overrides:
        if _TAKES_UNIFORM.match(text):
            text = _UNIFORM.sub(lambda m: f"'{m.group()}'", text)
        key = text.split("=", 1)[0]
        if _MODEL.match(text):
            text = _MODEL.sub("+model=", text)
        elif not text.startswith("-") and "=" in text and _is_value_key(key.lstrip("+")):
            free = key.lstrip("+").startswith(("method.params.", "quantizer.formats."))
            text = f"++{text.lstrip('+')}" if free or key.startswith("+") else text
        out.append(text)
    return out


def with_default_model(overrides: Sequence[str]) -> list[str]:
    """``overrides``, with the embedded default where they name no model."""
    named = any(_MODEL.match(text) for text in overrides)
    return list(overrides) if named else [f"+model={DEFAULT_MODEL}", *overrides]


def inspect(overrides: Sequence[str], sweep: bool, config_dir: str | None = None) -> tuple[list[str], list[Problem]]:
    """Overrides that Hydra can take, and the problems of the others.

    Args:
        overrides: Normalised.
        sweep: Whether one key may have several values (``--multirun``).
        config_dir: The user's own folder of groups (``--config-dir``), or ``None``.
    """
    parser, good, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).strip().splitlines()[0]
            problems.append(Problem(text, f"{text!r} is not of the form KEY=VALUE that Hydra reads ({reason}); "
                                          "put values with special characters into quotes."))
            continue
        found = _problem(text, override, sweep, config_dir)
        if found is None:
            good.append(text)
        else:
            problems.append(found)
    return good, problems


def _problem(text: str, override: Override, sweep: bool, config_dir: str | None) -> Problem | None:
    key = override.key_or_group
    if override.is_hydra_override():
        return None
    if override.is_delete():
        return Problem(key, f"{text!r}: keys of the configuration can't be deleted; give {key} another value.")
    if override.is_sweep_override() and not sweep:
        values = text.split("=", 1)[1]
        as_list = f"write {key}=[{values}] for a list, or " if _takes_list(key) else ""
        return Problem(key, f"{text!r} gives {key} several values: {as_list}add --multirun for one run each.")
    known = _groups_with(config_dir)
    if key in known:
        return _group_problem(key, override, known[key])
    return None if _is_value_key(key) else unknown_key(key, _value_keys(RunConfig))


def _groups_with(config_dir: str | None) -> dict[str, tuple[str, ...]]:
    found = dict(groups())
    for file in Path(config_dir).glob("*/*.yaml") if config_dir else ():
        found[file.parent.name] = (*found.get(file.parent.name, ()), file.stem)
    return found


def _group_problem(key: str, override: Override, options: Sequence[str]) -> Problem | None:
    values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
    for value in values:
        if not isinstance(value, str) or value.strip("'\"") not in options:
            ordered = nearest_first(str(value), options)
            return Problem(key, f"Unknown {key} {value!r}; known, nearest first: {', '.join(ordered)}."
                                f"{OF_ONES_OWN.get(key, '')}")
    return None


def _is_value_key(key: str) -> bool:
    """Whether ``key`` addresses a value of the schema, not a group as a whole."""
    cls: type = RunConfig
    parts = key.split(".")
    for i, part in enumerate(parts):
        hints = typing.get_type_hints(cls)
        if part not in hints:
            return False
        hint = hints[part]
        if dataclasses.is_dataclass(hint):
            cls = typing.cast(type, hint)
        elif typing.get_origin(hint) is dict:
            rest = parts[i + 1:]
            return bool(rest) and (part != "model" or (len(rest) == 1 and rest[0] in model_keys()))
        else:
            return i == len(parts) - 1
    return False


def _takes_list(key: str) -> bool:
    """Whether the value of ``key`` is a list."""
    hint: typing.Any = RunConfig
    for part in key.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return typing.get_origin(hint) is tuple


def _value_keys(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of every value of the schema."""
    out = []
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            out += _value_keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            out += [f"model.{key}" for key in model_keys()] if name == "model" else [f"{prefix}{name}"]
    return [*out, *groups()] if not prefix else out
