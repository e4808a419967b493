"""Command-line overrides: shorthands that Hydra does not know, and every mistake in them at once."""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from qra_bo.config.check import Problem, fields_of, options_of, unknown_key
from qra_bo.config.other_names import REMOVED, answer
from qra_bo.config.schema import RunConfig
from qra_bo.utils.errors import nearest_first
from qra_bo.utils.fields import UserPath
from qra_bo.utils.formatting import cut, override_value

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The package's configuration, found by its place: a folder ``conf`` of the working directory is another one."""
DEFAULT_MODEL = "smollm2_135m"
NEAREST = 6
"""Names of a long list that a message gives."""
ALTERNATIVES = {"model": " Any other dense decoder: +model=hf model.path=FOLDER-or-ORG/NAME.",
                "data": " A text of your own: data=jsonl data.path=FILE.",
                "method": " Peers, in a checkout of the project: --config-dir bench/conf method=sequential; your own: "
                          "--config-dir FOLDER.",
                "logger": " TensorBoard, Weights & Biases and others: logger._target_=my_package.Listener, as in "
                          "examples/own_tracker.py.",
                "oracle": " Losses emulated from a table of real trials: --config-dir bench/conf oracle=emulator "
                          "oracle.table=FOLDER."}
"""By group, how to give what no file of the group names."""
_SIMPLE = re.compile(r"(?<!['\"\w])(uniform|mix)\s*:\s*[\w.-]+\s*,\s*\d+(?!['\"\w])", re.IGNORECASE)
_TAKES_SIMPLE = re.compile(r"^(\+{0,2})(budget|allocation)=(?!['\"])")
_MODEL = re.compile(r"^(\+{0,2})model=")
_NUMBER = re.compile(r"[+-]?[\d_.]+(e[+-]?[\d_]+)?", re.IGNORECASE)
_HOME = re.compile(r"~(/[^,'\"]*)?")


@functools.cache
def options(config_dir: str | None = None) -> dict[str, tuple[str, ...]]:
    """Every config group and its options, those of the user's own folder included."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in (CONF, *([Path(config_dir)] if config_dir else ())):
        for file in sorted(folder.glob("[!_]*/[!_]*.yaml")):
            found[file.parent.name] = (*found.get(file.parent.name, ()), file.stem)
    return found


def normalise(overrides: Iterable[str]) -> list[str]:
    """Read ``model=NAME`` as ``+model=NAME``, quote ``uniform:BITS,RANK`` and ``mix:BITS,RANK``, expand ``~``.

    A key of the schema and a group may be given with or without ``+``. A flag passes as it is.
    """
    out = []
    for text in overrides:
        if _TAKES_SIMPLE.match(text):
            text = _SIMPLE.sub(lambda m: f"'{m.group()}'", text)
        key = text.split("=", 1)[0].lstrip("+")
        if _MODEL.match(text):
            text = _MODEL.sub("+model=", text)
        elif key in options():
            text = text.lstrip("+")
        elif "=" in text and _is_value(key) and (text.startswith("+") or key.startswith(OPEN)):
            text = f"++{text.lstrip('+')}"
        name, _, value = text.partition("=")
        if _HOME.fullmatch(value):
            text = f"{name}={override_value(os.path.expanduser(value))}"
        elif key in TEXTS and _NUMBER.fullmatch(value):
            text = f"{name}={override_value(value)}"
        out.append(text)
    return out


def with_default_model(overrides: Sequence[str]) -> list[str]:
    """``overrides``, with the embedded default where they name no model."""
    named = any(_MODEL.match(text) for text in overrides)
    return list(overrides) if named else [f"+model={DEFAULT_MODEL}", *overrides]


def repeated(overrides: Iterable[str]) -> list[str]:
    """Return a line for every key with several values, of which Hydra takes the last one without a word."""
    given: dict[str, dict[str, None]] = {}
    for key, _, value in (text.partition("=") for text in overrides):
        given.setdefault(key.lstrip("+"), {})[value] = None
    return [f"{key} was given as {' and '.join(values)}: the last one counts"
            for key, values in given.items() if len(values) > 1]


def inspect(overrides: Sequence[str], sweep: bool, config_dir: str | None = None) -> tuple[list[str], list[Problem]]:
    """Return the normalised overrides that Hydra can take, and the problems of the others.

    With ``sweep`` (``--multirun``) one key may have several values; ``config_dir`` is the user's own folder of groups.
    """
    parser, good, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            found = _problem(text, parser.parse_override(text), sweep, options(config_dir))
        except HydraException as error:
            found = _malformed(text, error, options(config_dir))
        if found is None:
            good.append(text)
        else:
            problems.append(found)
    models = [text for text in good if _MODEL.match(text)]
    if len(models) > 1:  # Hydra's own message says to use an "override", which does not help
        named = " and ".join(text.partition("=")[2] for text in models)
        problems.append(Problem("model", f"model must be given once; got {named}: leave all but one out."))
        good = [text for text in good if text not in models[:-1]]
    return good, problems


def _malformed(text: str, error: HydraException, known: dict[str, tuple[str, ...]]) -> Problem:
    """Return the problem of an override that Hydra can't parse."""
    if "=" in text:
        reason = str(error).strip().splitlines()[0]
        return Problem(text, f"{cut(text)!r} is not of the form KEY=VALUE that Hydra reads ({cut(reason, 200)}); put "
                             "values with special characters into quotes.")
    names = {"task": get_args(VALUES["task"]), "+model": known["model"], **known}
    key = next((key for key, values in names.items() if text in values), None)
    hint = "put the key before the value, such as budget=8GB." if key is None else f"did you mean {key}={text}?"
    return Problem(text, f"{cut(text)!r} is not of the form KEY=VALUE: {hint}")


def unknown_flag(flag: str) -> Problem:
    """Return the problem of an option that is not taken, such as ``--learning_rate=1e-4``; keys have no dashes here."""
    name, _, value = flag.lstrip("-").partition("=")
    ours = answer(name)
    hint = f"here it is {ours}" if ours else f"a key is given as {name.replace('-', '_')}={value or 'VALUE'}"
    return Problem(flag, f"Unknown option {flag.partition('=')[0]!r}; {hint}. python -m qra_bo --help lists options.")


def _problem(text: str, override: Override, sweep: bool, known: dict[str, tuple[str, ...]]) -> Problem | None:
    key = override.key_or_group
    if override.is_hydra_override():
        return None
    if override.is_delete():
        return Problem(key, f"{text!r}: keys of the configuration can't be deleted; give {key} another value.")
    removed = key in REMOVED and not key.startswith("oracle.")  # which one of the user's own may have
    group = key.removesuffix(".name")
    if group in ("model", "data", "effort", "train") and group != key and override.value() in known[group]:
        return Problem(key, f"{key} is a label alone; {group}={override.value()} chooses what has this name.")
    if key not in known and (removed or not _is_value(key)):
        return unknown_key(key, [*VALUES, *known])
    if override.is_sweep_override() and not sweep:
        values = text.split("=", 1)[1]
        as_list = f"write {key}=[{values}] for a list, or " if "tuple" in repr(VALUES.get(key)) else ""
        return Problem(key, f"{text!r} gives {key} several values: {as_list}add --multirun for one run each.")
    if key not in known:
        return None
    for value in override.sweep_string_iterator() if override.is_sweep_override() else (override.value(),):
        if not isinstance(value, str) or value.strip("'\"") not in known[key]:
            if key == "model" and "/" in str(value):
                return Problem(key, f"Unknown model {cut(value)!r}; a model of the hub or in a folder is given as "
                                    f"+model=hf model.path={value}.")
            ordered = nearest_first(str(value), known[key])
            more = f" and {len(ordered) - NEAREST} more (--help all)" if len(ordered) > 2 * NEAREST else ""
            listed = ordered[:NEAREST] if more else ordered
            return Problem(key, f"Unknown {key} {cut(value)!r}; known, nearest first: {', '.join(listed)}{more}."
                                f"{ALTERNATIVES.get(key, '')}")
    return None


def _values(hint: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every value of the schema by its dotted name."""
    out = {}
    for key, inner in fields_of(hint).items():
        out.update(_values(inner, f"{prefix}{key}.") or {f"{prefix}{key}": inner})
    return out


VALUES = _values(RunConfig)
TEXTS = frozenset(key for key, hint in VALUES.items() if {str, UserPath} & {hint, *options_of(hint)})
"""Keys of paths, ids and names: what looks like a number is a text as it stands, such as ``out=2026_05_01``."""
OPEN = ("method.", "logger.", "oracle.", "data.", "executor.", "quantizer.formats.")
"""Beginnings of keys that depend on the chosen option: the composed configuration is checked for these."""


def _is_value(key: str) -> bool:
    """Whether ``key`` addresses a value, not a group as a whole."""
    return key in VALUES or key.startswith(OPEN)
