"""Configuration of a table: the ``table1`` keys of ``conf/``, and a run's configuration for all the others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from hydra import compose
from pydantic import StrictInt

from bench.tasks import DATA, RATES, TASKS
from qra_bo.config import RunConfig
from qra_bo.config.check import validated
from qra_bo.config.compose import HYDRA_ERRORS, hydra_app, resolved
from qra_bo.space.space import check_ladder
from qra_bo.utils.errors import ConfigError, nearest_first
from qra_bo.utils.fields import Count, Group, Texts, accepted_by

CONF = Path(__file__).parent / "conf"
GROUP = "table1"
NAME = "table1.jsonl"
"""Journal of a table, in its folder."""
DEFAULT = "full"
Seeds = Annotated[StrictInt, Ge(2)]


class TableOptions(Group):
    """The rows of a table, the limits on their memory, and what every row may spend. ``conf/*.yaml`` explain the keys
    and hold their values."""

    name: str
    methods: Texts | None
    limits: Texts
    published_ranks: Annotated[tuple[StrictInt, ...], accepted_by(lambda ranks: check_ladder("ranks", ranks))]
    finer_bits: Annotated[tuple[StrictInt, ...], accepted_by(lambda bits: check_ladder("bits", bits))]
    rank_choices: Count
    amq_evaluations: Annotated[StrictInt, Ge(3)]
    lr_trials: Count
    steps: Count | None
    seeds: Seeds
    key_seeds: Seeds
    join: Texts
    tasks: Texts
    questions: Count | None


@dataclass(frozen=True)
class TableConfig:
    """A checked configuration.

    Args:
        run: Configuration of every trial and search.
        table: The ``table1`` keys.
    """

    run: RunConfig
    table: TableOptions


def learned_elsewhere(run: RunConfig) -> list[str]:
    """Return the override that takes exchange rates from the table of the other text, where those of the package, which
    are named by their model, were learned from this very text; else nothing. The path is relative, as a table may go on
    in another clone."""
    others = [task for task in TASKS if task != run.data.name]
    if run.surrogate.rates != run.model_name or len(others) == len(TASKS):
        return []
    return [f"surrogate.rates={os.path.relpath(DATA / others[0] / RATES)}"]


def load_options(overrides: Sequence[str] = ()) -> TableOptions:
    """Compose ``table1=NAME`` and ``table1.KEY=VALUE``, and check every key by itself.

    Raises:
        ConfigError: With every problem at once.
    """
    name = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{GROUP}=")), DEFAULT)
    known = sorted(path.stem for path in CONF.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"unknown table1={name}; known, nearest first: {', '.join(nearest_first(name, known))}")
    try:
        with hydra_app(config_path=str(CONF)):
            keys = [o.removeprefix(f"{GROUP}.") for o in overrides if o.startswith(f"{GROUP}.")]
            values = resolved(compose(name, keys))
    except HYDRA_ERRORS as error:
        raise ConfigError(f"table1: {' '.join(str(error).split())}") from error
    options, problems = validated(TableOptions, values)
    if options is None:
        raise ConfigError([f"table1.{p.message}" for p in problems])
    return options
