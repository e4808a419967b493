"""What benchmarks on whole searches begin with: a session of a table, and the limit that a configuration states."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.table1.config import NAME, TableConfig, TableOptions, load_options
from bench.table1.limits import Limit
from bench.table1.session import Session
from qra_bo.config.schema import RunConfig
from qra_bo.pipeline.run import make_setting
from qra_bo.study.journal import Journal
from qra_bo.utils.errors import ConfigError


@contextmanager
def table_session(config: RunConfig, folder: Path, options: TableOptions | None = None) -> Iterator[Session]:
    """A session whose evaluations are kept in ``folder`` and gone on with.

    Raises:
        ConfigError: If codes are to be chosen otherwise than to the nearest.
    """
    if config.quantizer.rounding != "rtn":
        raise ConfigError("this benchmark compares with the round-to-nearest codes: say quantizer.rounding=rtn")
    folder.mkdir(parents=True, exist_ok=True)
    setting = make_setting(config)
    with Journal(folder, name=NAME) as journal:
        both = TableConfig(config, options or load_options())
        session = Session(both, replace(setting, memory=replace(setting.memory, scope="peak")), folder, journal)
        try:
            yield session
        finally:
            session.close()


def limit_of(config: RunConfig) -> Limit:
    """The configuration's budget in its scope."""
    scope, budget = config.memory.scope, config.budget[0]
    return Limit(f"{scope} {budget}", scope, budget, None, None)
