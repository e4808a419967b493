"""All methods of the table by name, in its order."""

from collections.abc import Mapping

from bench.table1.rows import FIXED, Row
from bench.table1.rows_given_rank import GIVEN_RANK
from bench.table1.rows_searched import SEARCHED
from qra_bo.utils.errors import ConfigError, nearest_first

ROWS: Mapping[str, Row] = {row.name: row for row in (*FIXED, *GIVEN_RANK, *SEARCHED)}


def row_named(name: str) -> Row:
    """Return the method of a name; raises ``ConfigError`` if there is none."""
    if name not in ROWS:
        raise ConfigError(f"unknown method of the table {name!r}; known: {', '.join(nearest_first(name, ROWS))}")
    return ROWS[name]
