"""``python -m qra_bo`` that knows the peers too: ``python -m bench.peers method.name=tpe budget=uniform:4,4 ...``."""

import sys

from bench.peers.registry import name_peers
from qra_bo.cli.app import main

if __name__ == "__main__":
    name_peers()
    sys.exit(main())
