"""Configuration of a table: the ``table1`` keys of ``conf/``, and a run's configuration for all the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qra_bo.config import RunConfig, load_config
from qra_bo.space import Ladder
from qra_bo.utils.errors import ConfigError, UserError, nearest_first
from qra_bo.utils.redact import redact

CONF = Path(__file__).parent / "conf"
GROUP = "table1"
NAME = "table1.jsonl"
"""Journal of a table, in its folder."""
DEFAULT = "full"


@dataclass(frozen=True)
class TableOptions:
    """The rows of a table, the limits on their memory, and what every row may spend. ``conf/*.yaml`` explain the keys
    and hold their values."""

    name: str
    methods: list[str] | None
    limits: list[str]
    published_ranks: list[int]
    finer_bits: list[int]
    rank_choices: int
    amq_evaluations: int
    lr_trials: int
    steps: int | None
    seeds: int
    key_seeds: int
    rate_factors: list[float]
    join: list[str]
    tasks: list[str]
    questions: int | None


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
    if not any(o.startswith("quantizer.rounding=") for o in rest):
        rest.append("quantizer.rounding=rtn")  # rows choose their own codes
    problems: list[str] = []
    run = table = None
    try:
        run = load_config(rest)
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


def load_options(overrides: Sequence[str] = ()) -> TableOptions:
    """Compose ``table1=NAME`` and ``table1.KEY=VALUE``; only the types of the values are checked.

    Raises:
        ConfigError: If a name, a key or a type is wrong.
    """
    name = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith(f"{GROUP}=")), DEFAULT)
    known = sorted(path.stem for path in CONF.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"unknown table1={name}; known, nearest first: {', '.join(nearest_first(name, known))}")
    keys = [o.removeprefix(f"{GROUP}.") for o in overrides if o.startswith(f"{GROUP}.")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="table1"):
            merged = OmegaConf.merge(OmegaConf.structured(TableOptions), compose(name, overrides=keys))
        return cast(TableOptions, OmegaConf.to_object(merged))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"table1: {' '.join(str(error).split())}") from error


def _run_problems(run: RunConfig) -> Iterator[str]:
    if run.quantizer.rounding != "rtn":
        yield (f"quantizer.rounding={run.quantizer.rounding} can't be used for a table, whose rows choose their own "
               "codes: leave it out, and choose rows with table1.methods.")
    if run.oracle.name == "benchmark":
        yield ("oracle.name: a table needs oracle=finetune, or oracle=synthetic for a dry run; oracle=benchmark knows "
               "only LoRA.")
    if run.memory.calibrate:
        yield ("memory.calibrate: a table predicts the memory of all rows alike, also when it is resumed; got "
               "memory.calibrate=true, which changes predictions with the last measurement.")


def _table_problems(table: TableOptions) -> Iterator[str]:
    from bench.table1.cells import make_cells  # the rows import this module

    least = {"seeds": 2, "key_seeds": 2, "lr_trials": 1, "rank_choices": 1, "amq_evaluations": 3, "steps": 1,
             "questions": 1}
    for key, at_least in least.items():
        value = getattr(table, key)
        if value is not None and value < at_least:
            yield f"table1.{key} must be at least {at_least}; got {value}."
    rates = table.rate_factors
    if len(set(rates)) < len(rates) or any(rate <= 0 or rate == 1 for rate in rates):
        yield f"table1.rate_factors must be distinct positive factors other than 1, e.g. [0.5,2]; got {rates}."
    try:
        Ladder("ranks", tuple(table.published_ranks))
    except UserError as error:
        yield f"table1.published_ranks: {error}"
    try:
        make_cells(table.limits, table.methods)
    except UserError as error:
        yield f"table1: {error}"
    for folder in table.join:
        if not (Path(folder) / NAME).is_file():
            yield f"table1.join takes folders of tables that were begun elsewhere; {redact(folder)} holds no {NAME}."
