"""``python -m qra_bo``, and the command ``qra-bo``."""

import signal
import sys

from qra_bo.utils.process import prepare


def main() -> int:
    """Run the command line of this process; return the exit status."""
    prepare()  # before libraries keep references to the streams
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # imports have nothing to clean up
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qra_bo.cli.app import main as run
    signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    sys.exit(main())
