"""``python -m qra_bo`` with the peers as methods: ``python -m bench.peers method=tpe budget=uniform:4,4 ...``."""

import sys
from pathlib import Path

from qra_bo.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["--config-dir", str(Path(__file__).parent / "conf"), *sys.argv[1:]]))
