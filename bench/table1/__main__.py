"""``python -m bench.table1 [table1=full|short|paper] [table1.KEY=VALUE ...] [KEY=VALUE ...]``."""

import sys
from collections.abc import Sequence

from bench.table1.load import load_table
from bench.table1.run import run_table
from qra_bo.utils.errors import QRABOError
from qra_bo.utils.redact import printable, redact


def main(overrides: Sequence[str]) -> int:
    """Make the table or resume it; returns the exit status."""
    try:
        run_table(load_table(overrides))
    except QRABOError as error:
        print(printable(redact(f"table1: {' '.join(str(error).split())}")), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        print(f"table1: {error or 'stopped'}", file=sys.stderr)
        return int(getattr(error, "exit_status", 130))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
