"""From overrides to a checked configuration of a table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.table1.cells import make_cells
from bench.table1.config import GROUP, NAME, TableConfig, TableOptions, learned_elsewhere, load_options
from bench.table1.recipe import PUBLISHED_FORMATS
from qra_bo.config import RunConfig, load_config
from qra_bo.utils.errors import ConfigError, UserError
from qra_bo.utils.redact import redact

DEFAULTS = ("quantizer.rounding=rtn",  # rows choose their own codes
            "quantizer.tokens=16384",
            *(f"quantizer.formats.{bits}=[{','.join(names)}]" for bits, names in PUBLISHED_FORMATS.items()),
            "embeddings=16",  # as was published
            "dtype=bfloat16",  # whatever this CPU is fastest in
            "search.length=trial")  # all rows are compared after a trial's steps
"""Overrides of every table, unless one of the same key is given."""


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


def _run_problems(run: RunConfig) -> Iterator[str]:
    if run.quantizer.rounding != "rtn":
        yield (f"quantizer.rounding={run.quantizer.rounding} can't be used for a table, whose rows choose their own "
               "codes: leave it out, and choose rows with table1.methods.")
    if run.oracle.name not in ("finetune", "synthetic"):
        yield ("oracle.name: a table needs oracle=finetune, or oracle=synthetic for a dry run, as other oracles have "
               f"only LoRA; got {run.oracle.name}.")


def _table_problems(table: TableOptions) -> Iterator[str]:
    try:
        make_cells(table.limits, table.methods)
    except UserError as error:
        yield f"table1: {error}"
    for folder in table.join:
        if not (Path(folder) / NAME).is_file():
            yield f"table1.join takes folders of tables that were begun elsewhere; {redact(folder)} holds no {NAME}."
