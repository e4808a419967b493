"""``python -m qra_bo``."""

import sys

from qra_bo.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
