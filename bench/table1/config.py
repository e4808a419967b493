"""Configuration of a table: the ``table1`` keys of ``conf/``, and a run's configuration for all the others."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from hydra import compose
from pydantic import StrictInt

from bench.collect.task import DATA, RATES, TASKS
from qra_bo.config import RunConfig, load_config
from qra_bo.config.check import validated
from qra_bo.config.compose import HYDRA_ERRORS, hydra_app
from qra_bo.config.environment import resolved
from qra_bo.config.groups import OtherRates
from qra_bo.space import Ladder
from qra_bo.utils.errors import ConfigError, UserError, nearest_first
from qra_bo.utils.fields import Count, Group, Texts, accepted_by
from qra_bo.utils.redact import redact

CONF = Path(__file__).parent / "conf"
GROUP = "table1"
NAME = "table1.jsonl"
"""Journal of a table, in its folder."""
DEFAULT = "full"
DEFAULTS = ("quantizer.rounding=rtn",  # rows choose their own codes
            "dtype=bfloat16",  # whatever this CPU is fastest in
            "search.length=trial")  # all rows are compared after a trial's steps
"""Overrides of every table, unless one of the same key is given."""
Seeds = Annotated[StrictInt, Ge(2)]


class TableOptions(Group):
    """The rows of a table, the limits on their memory, and what every row may spend. ``conf/*.yaml`` explain the keys
    and hold their values."""

    name: str
    methods: Texts | None
    limits: Texts
    published_ranks: Annotated[tuple[StrictInt, ...], accepted_by(lambda ranks: Ladder("ranks", ranks))]
    finer_bits: Annotated[tuple[StrictInt, ...], accepted_by(lambda bits: Ladder("bits", bits))]
    rank_choices: Count
    amq_evaluations: Annotated[StrictInt, Ge(3)]
    lr_trials: Count
    steps: Count | None
    seeds: Seeds
    key_seeds: Seeds
    rate_factors: OtherRates
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


def load_table(overrides: Sequence[str] = ()) -> TableConfig:
    """Compose and check the configuration of a table.

    Args:
        overrides: ``table1=NAME`` (a file of ``conf/``), ``table1.KEY=VALUE``, and overrides of a run.

    Raises:
        ConfigError: With every problem at once.
    """
    own = [o for o in overrides if o.partition("=")[0].partition(".")[0] == GROUP]
    rest = [o for o in overrides if o not in own]
    rest += [o for o in DEFAULTS if not any(given.startswith(o.partition("=")[0]) for given in rest)]
    problems: list[str] = []
    run = table = None
    try:
        run = load_config(rest)
        given = any(o.startswith(("surrogate.rates=", "method.rates=")) for o in rest)
        if not given and (rates := learned_elsewhere(run)):
            run = load_config([*rest, *rates])
        problems += _run_problems(run)
    except ConfigError as error:
        problems += error.problems
    try:
        table = load_options(own)
        problems += _table_problems(table)
    except ConfigError as error:
        problems += error.problems
    if problems or run is None or table is None:
        raise ConfigError(problems)
    return TableConfig(run, table)


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


def _run_problems(run: RunConfig) -> Iterator[str]:
    if run.quantizer.rounding != "rtn":
        yield (f"quantizer.rounding={run.quantizer.rounding} can't be used for a table, whose rows choose their own "
               "codes: leave it out, and choose rows with table1.methods.")
    if run.oracle.name not in ("finetune", "synthetic"):
        yield ("oracle.name: a table needs oracle=finetune, or oracle=synthetic for a dry run, as other oracles have "
               f"only LoRA; got {run.oracle.name}.")
    if run.memory.calibrate:
        yield ("memory.calibrate: a table predicts the memory of all rows alike, also when it is resumed; got "
               "memory.calibrate=true, which changes predictions with the last measurement.")


def _table_problems(table: TableOptions) -> Iterator[str]:
    from bench.table1.cells import make_cells  # the rows import this module

    try:
        make_cells(table.limits, table.methods)
    except UserError as error:
        yield f"table1: {error}"
    for folder in table.join:
        if not (Path(folder) / NAME).is_file():
            yield f"table1.join takes folders of tables that were begun elsewhere; {redact(folder)} holds no {NAME}."
