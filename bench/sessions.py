"""Sessions of benchmarks that keep trials and searches in the folder of a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.table1.config import TableConfig, TableOptions, load_options
from bench.table1.limits import Limit
from bench.table1.session import Session, open_session
from qra_bo.config import RunConfig
from qra_bo.utils.errors import ConfigError


@contextmanager
def table_session(config: RunConfig, folder: Path, options: TableOptions | None = None) -> Iterator[Session]:
    """Open a session whose trials are kept in ``folder``; it is resumed where it exists.

    Raises:
        ConfigError: If ``quantizer.rounding`` is not ``rtn``.
    """
    if config.quantizer.rounding != "rtn":
        raise ConfigError(f"quantizer.rounding={config.quantizer.rounding}: this benchmark compares at "
                          "round-to-nearest codes; give quantizer.rounding=rtn")
    with open_session(TableConfig(config, options or load_options()), folder) as session:
        yield session


def limit_of(config: RunConfig) -> Limit:
    """Return the budget of a configuration in its scope."""
    scope, budget = config.memory.scope, str(config.budget[0])
    return Limit(f"{scope} {budget}", scope, budget, None, None)
