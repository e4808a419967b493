"""From overrides to a checked ``RunConfig``: composition by Hydra, then types, then what fields mean together."""

import functools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qra_bo.config.config_dir import check_config_dir
from qra_bo.config.decode import Problem, build, check
from qra_bo.config.overrides import DEFAULT_MODEL, inspect, normalise, with_default_model
from qra_bo.config.rules import problems_of
from qra_bo.config.schema import RunConfig
from qra_bo.trials import OWN_BASE
from qra_bo.utils.errors import ConfigError

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)


def compose_config(overrides: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """Compose, check and freeze.

    Args:
        overrides: As on the command line.
        config_dir: The user's own folder of groups, or ``None``.

    Raises:
        ConfigError: With every problem at once.
    """
    check_config_dir(config_dir)
    good, problems = inspect(with_default_model(normalise(overrides)), sweep=False, config_dir=config_dir)
    extra = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
    try:
        raw = compose_plain([*with_default_model(good), *extra])
    except HYDRA_ERRORS as error:
        problems.append(Problem("", hydra_message(error)))
        raw = deepcopy(_defaults())
    return config_from(raw, problems)


def config_from(raw: Mapping[str, Any], found: Sequence[Problem] = ()) -> RunConfig:
    """The typed configuration of composed plain values.

    Args:
        raw: What Hydra composed, interpolations resolved.
        found: Problems found before; they are raised together with those found here.

    Raises:
        ConfigError: With every problem at once.
    """
    problems = list(found)
    mismatches = check(RunConfig, raw)
    if mismatches:  # stand in defaults for what is broken, so that the rest is still checked
        raw = _mended(raw, mismatches)
    config: RunConfig = with_codes(build(RunConfig, raw))
    problems += mismatches
    problems += [p for p in problems_of(config) if p.key not in {m.key for m in mismatches}]
    if problems:
        raise ConfigError(dict.fromkeys(p.message for p in problems))
    return config


def with_codes(config: RunConfig) -> RunConfig:
    """``quantizer.rounding=auto`` as what it means here: codes by GPTQ where a real model is quantised, and not to
    another base for every start of its adapters."""
    if config.quantizer.rounding != "auto":
        return config
    chosen = config.oracle.name == "finetune" and config.adapter.init not in OWN_BASE
    return config.with_changes(quantizer=replace(config.quantizer, rounding="gptq" if chosen else "rtn"))


def compose_plain(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``conf/`` and ``overrides`` compose to, as plain values."""
    with initialize_config_module("conf", version_base="1.3", job_name="qra_bo"):
        plain = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def hydra_message(error: Exception) -> str:
    """One line for an error of Hydra's own."""
    text = " ".join(str(error).split())
    return f"Hydra can't compose this configuration: {text.rstrip('.')}; see python -m qra_bo --help."


@functools.cache
def _defaults() -> dict[str, Any]:
    return compose_plain([f"+model={DEFAULT_MODEL}"])


def _mended(raw: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    """``raw`` with defaults for mismatched and missing keys and without unknown ones."""
    out, defaults = deepcopy(dict(raw)), _defaults()
    for problem in problems:
        *parents, leaf = problem.key.split(".")
        mine, standard = out, defaults
        try:
            for part in parents:
                mine, standard = mine[part], standard[part]
            if leaf in standard:
                mine[leaf] = standard[leaf]
            else:
                del mine[leaf]
        except (KeyError, TypeError):  # a name with a dot in it: the whole group stands in
            group = problem.key.partition(".")[0]
            out.pop(problem.key, None)
            out.update({group: deepcopy(defaults[group])} if group in defaults else {})
    return out
