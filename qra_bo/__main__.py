"""``python -m qra_bo``, and the command ``qra-bo``."""

import sys

from qra_bo.utils.process import prepare


def main() -> int:
    """Run the command line of this process; return the exit status."""
    prepare()  # before libraries keep references to the streams
    from qra_bo.cli.app import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())
