"""``python -m qra_bo`` that knows the peers too: ``python -m bench.peers method.name=tpe budget=uniform:4,4 ...``."""

import sys

import bench.peers.registry  # noqa: F401  (names the peers as methods)
from qra_bo.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
