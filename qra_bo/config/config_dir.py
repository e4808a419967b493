"""A folder of one's own config groups (``--config-dir``) gives values: it names no code, and allows none to run."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qra_bo.utils.errors import ConfigError

TRUST = "trust_remote_code"
_PACKAGE = re.compile(r"\s*#[#\s]*@package\b")
_NAME = r"[\w-]+(\.[\w-]+)*"
_ENTRY = re.compile(rf"((optional|override) )?/?{_NAME}(/{_NAME})*")
"""What a ``defaults`` list may name: a group or a file, in its own package and below the folder."""


def check_config_dir(folder: str | None) -> None:
    """Refuse a folder that does more than give values.

    Hydra calls the functions that its own settings name, and a file can reach these from any group.

    Args:
        folder: The user's folder, or ``None``.

    Raises:
        ConfigError: With every problem at once.
    """
    if folder is None:
        return
    problems = [f"{path}: {what}." for path in _files(Path(folder)) for what in _of_file(path, Path(folder))]
    if problems:
        raise ConfigError(problems)


def _files(folder: Path) -> Iterator[Path]:
    """Every YAML file that Hydra could find, behind links too, each folder once."""
    seen = set()
    for where, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        yield from (Path(where) / name for name in sorted(names) if name.endswith(".yaml"))


def _of_file(path: Path, folder: Path) -> Iterator[str]:
    if path.relative_to(folder).parts[0] in ("hydra", "hydra.yaml"):
        yield "settings of Hydra itself are not taken from --config-dir; give hydra.KEY=VALUE on the command line"
        return
    try:
        text = path.read_text(encoding="utf-8")
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of a malformed file the reader raises whatever it stumbles on
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        yield f"it can't be read as YAML ({said}); mend it, or take it out of the folder"
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if _PACKAGE.match(line):
            yield (f"line {number} ({line.strip()[:60]!r}) would put the file elsewhere in the configuration; a file "
                   "in --config-dir is one of its group, without that line")
    yield from _of_keys(content)
    if isinstance(content, Mapping):
        yield from _of_defaults(content.get("defaults"))


def _of_keys(value: Any, above: str = "") -> Iterator[str]:
    """What is wrong with a mapping's keys at any level."""
    if isinstance(value, list):
        for inner in value:
            yield from _of_keys(inner, above)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        name = f"{above}{key}"
        if key == "defaults" and not above:
            continue
        if str(key).split(".")[0] == "hydra":
            yield f"the key {name!r} is a setting of Hydra itself; give it on the command line"
        elif key == "_target_":
            yield f"the key {name!r} names a function to call; a file in --config-dir is data, so take it out"
        elif key == TRUST and inner not in (False, None):
            yield (f"the key {name!r} lets code of a model run, which a file can't allow; set it to false there, and "
                   f"say model.{TRUST}=true on the command line if you trust that code")
        else:
            yield from _of_keys(inner, f"{name}.")


def _of_defaults(defaults: Any) -> Iterator[str]:
    """Entries of a ``defaults`` list that reach Hydra, another package or another folder."""
    for entry in defaults if isinstance(defaults, list) else [] if defaults is None else [defaults]:
        names = entry if isinstance(entry, dict) else {entry: None}
        for group, options in names.items():
            named = [group, *(options if isinstance(options, list) else [] if options is None else [options])]
            plain = all(isinstance(name, str) and _ENTRY.fullmatch(name) for name in named)
            if not plain or "hydra" in re.split(r"[/ ]", str(group)):
                yield (f"the entry {str(entry)[:80]!r} of 'defaults' is not the plain name of a group or a file of "
                       "this folder; give it on the command line")
