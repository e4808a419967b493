"""``python -m bench.table1 [table1=full|short|paper] [table1.KEY=VALUE ...] [KEY=VALUE ...]``."""

import sys
from collections.abc import Sequence

from bench.table1.config import load_table
from bench.table1.run import run_table
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.utils.errors import QRABOError
from qra_bo.utils.redact import printable, redact


def main(overrides: Sequence[str]) -> int:
    """Make the table or resume it; returns the exit status."""
    try:
        with Interrupts():
            run_table(load_table(overrides))
    except QRABOError as error:
        print(printable(redact(f"table1: {' '.join(str(error).split())}")), file=sys.stderr)
        return error.exit_status
    except RunInterrupted as error:
        print(f"table1: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
