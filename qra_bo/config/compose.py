"""From overrides to a checked ``RunConfig``: composition by Hydra, then the schema, then the rules between fields."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qra_bo.config.check import Problem, validated
from qra_bo.config.groups import EffortConfig
from qra_bo.config.overrides import CONF, inspect, normalise, options, with_default_model
from qra_bo.config.presets import choices, with_learning_rate, with_model_path, with_workers
from qra_bo.config.resume import flatten
from qra_bo.config.rules import problems_of
from qra_bo.config.schema import RunConfig
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.formatting import cut, override_value
from qra_bo.utils.redact import hide

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, RecursionError)
"""What Hydra raises for groups and files that it can't read."""
MAIN = "config"  # in conf/
MOST_ALIASES = 20
"""Of a YAML file of the user's: aliases of aliases multiply values."""
_VARIABLE = re.compile(r"\$\{oc\.env:\s*([^},\s]+)\s*(?:,\s*([^}]*?)\s*)?\}")


def load_config(overrides: Sequence[str] = (), config_dir: str | None = None) -> RunConfig:
    """Compose ``conf/`` and the user's own ``config_dir`` of groups with overrides, e.g. ``["+model=tiny", "seed=1"]``.

    Raises:
        ConfigError: With every problem of the overrides and of what they compose to, all at once.
    """
    good, problems = inspect(normalise(overrides), sweep=False, config_dir=config_dir)
    try:
        composed = with_choices(with_default_model(good), partial(compose_plain, config_dir=config_dir))
    except HYDRA_ERRORS as error:
        raise ConfigError([*(p.message for p in problems), hydra_message(error)]) from error
    return config_from(composed, problems, good, config_dir)


def named_efforts() -> dict[str, EffortConfig]:
    """Return every option of ``conf/effort`` by its name."""
    return {name: EffortConfig.model_validate(resolved(OmegaConf.load(CONF / "effort" / f"{name}.yaml")))
            for name in options()["effort"]}


@contextmanager
def hydra_app(config_dir: str | None = None, config_path: str | None = None) -> Iterator[Hydra]:
    """Hydra over ``conf/`` of the installed package, or ``config_path`` instead, and ``config_dir`` of more groups.

    Raises:
        ConfigError: If ``config_dir`` is no folder, or one of its files multiplies values by aliases.
    """
    if config_dir is not None and not (os.path.isdir(config_dir) and os.access(config_dir, os.R_OK | os.X_OK)):
        raise ConfigError("--config-dir must name a folder of groups such as method/ or model/, which can be read; got "
                          f"{config_dir!r}.")
    groups = None if config_dir is None else Path(config_dir)
    for file in () if groups is None else (*groups.glob("*.yaml"), *groups.glob("*/*.yaml")):
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # what can't be read is left to Hydra
            tokens = yaml.scan(file.read_text(encoding="utf-8"), yaml.SafeLoader)
            if sum(isinstance(token, yaml.AliasToken) for token in tokens) > MOST_ALIASES:
                raise ConfigError(f"{file} has more than {MOST_ALIASES} aliases (*NAME); write their values out")
    outer = get_gh_backup()
    GlobalHydra.instance().clear()  # a Hydra application may call this from its own job
    try:
        with initialize_config_dir(os.path.abspath(config_path or CONF), job_name="qra_bo", version_base="1.3"):
            app = GlobalHydra.instance().hydra
            assert app is not None
            yield app
    finally:
        restore_gh_from_backup(outer)


def search_path(config_dir: str | None) -> list[str]:
    """The override that adds the user's own folder of groups."""
    return [] if config_dir is None else [
        f"hydra.searchpath=[{override_value(f'file://{os.path.abspath(config_dir)}')}]"]


def compose_plain(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Plain values that ``conf/`` and ``overrides`` compose to."""
    with hydra_app(config_dir):
        return resolved(compose(MAIN, [*overrides, *search_path(config_dir)]))


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
    values, raw = (OmegaConf.to_container(composed, resolve=resolve) for resolve in (True, False))
    out = Resolved({str(key): value for key, value in values.items()} if isinstance(values, dict) else {})
    known = flatten(values)
    found = {key: written for key, written in flatten(raw).items()
             if "${" in str(written) and isinstance(known.get(key), str | list)}
    secrets = set()
    for key, written in found.items():
        for name, default in () if key.startswith("model.") else _VARIABLE.findall(str(written)):
            secrets.add(text := os.environ.get(name, default))
            hide(text, f"${{oc.env:{name}}}")
    out.unresolved = {key: written for key, written in found.items()  # also through another key
                      if _VARIABLE.search(str(written)) or any(text and text in str(known[key]) for text in secrets)}
    return out


def with_choices(overrides: Sequence[str], make: Callable[[Sequence[str]], dict[str, Any]],
                 composed: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what ``overrides`` compose to by ``make``, together with the choices that they leave open.

    ``composed`` is what they compose to alone, where that is at hand. Errors are those of ``make``.
    """
    raw = make(overrides) if composed is None else composed
    chosen = choices(overrides, raw)
    return make([*chosen, *overrides]) if chosen else raw


def config_from(raw: Mapping[str, Any], found: Sequence[Problem] = (), overrides: Sequence[str] = (),
                config_dir: str | None = None) -> RunConfig:
    """Check and freeze plain values, composed from ``overrides`` over ``config_dir`` and ``conf/``.

    Problems ``found`` before are raised together with those found here.

    Raises:
        ConfigError: With every problem at once.
    """
    unresolved = raw.unresolved if isinstance(raw, Resolved) else {}
    raw = with_workers(with_learning_rate(with_model_path(raw)))
    config, mismatches = validated(RunConfig, raw)
    if config is None:  # defaults stand in for broken values, so that the rules between the others are still checked
        config, _ = validated(RunConfig, _mended(raw, [p.key for p in mismatches]))
    problems = [*found, *mismatches]
    if config is not None:
        if config.stored:  # references have codes of their own, which stored ones can't be made into
            given = {"quantizer.rounding": config.quantizer.rounding, "embeddings": config.embeddings}
            problems += [Problem(key, f"{key} beside codes=stored: all codes are those of the file; leave {key} out.")
                         for key, value in given.items() if value != "auto"]
            config = config.with_changes(effort=config.effort.with_changes(references=False), embeddings=16)
        if config.quantizer.rounding == "auto":  # GPTQ where a real model is quantised
            chosen = "gptq" if config.oracle.trains and not config.stored else "rtn"
            config = config.with_changes(quantizer=config.quantizer.with_changes(rounding=chosen))
        broken = {m.key for m in mismatches}
        problems += [p for p in problems_of(config) if p.key not in broken]
    if config is None or problems:
        raise ConfigError(dict.fromkeys(p.message for p in problems))
    words = [*([] if config_dir is None else [f"--config-dir={config_dir}"]), *overrides]
    return config.composed_from(words, unresolved)


def hydra_message(error: Exception) -> str:
    """One line for an error of Hydra's own."""
    said = cut(" ".join(str(error).split()).rstrip(".") or type(error).__name__, 400)
    return f"Hydra can't compose this configuration: {said}; see python -m qra_bo --help."


@cache
def _standard(overrides: tuple[str, ...]) -> Mapping[str, Any]:
    """What options of groups compose to by themselves; kept, as Hydra takes tenths of a second."""
    return with_workers(with_learning_rate(compose_plain(overrides)))


def _mended(raw: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """``raw`` with the values of its own options, or defaults, at ``keys``, and without unknown ones."""
    chosen = [f"{'+' * (group == 'model')}{group}={node['name']}" for group, names in options().items()
              if isinstance(node := raw.get(group), Mapping) and node.get("name") in names]
    standard = _standard(tuple(with_default_model(chosen)))
    mended = {key: value for key, value in raw.items() if key in standard}
    for key in keys:
        group, _, leaf = key.partition(".")
        given, usual = mended.get(group), standard.get(group)
        if leaf and isinstance(given, Mapping) and isinstance(usual, Mapping):
            kept = {name: value for name, value in given.items() if name != leaf}
            mended[group] = {**kept, leaf: usual[leaf]} if leaf in usual else kept
        elif group in standard:
            mended[group] = usual
    return mended
