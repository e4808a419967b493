"""``task=export``: write a finished run for other trainers, quantisers and servers."""

import sys
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.export.registry import SMALL, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.pipeline.exports import checked, warn_of_stale
from qra_bo.utils.process import tolerant


def run(config: RunConfig) -> int:
    """Export the run in ``out`` and print the files written; returns 0.

    As ``export.check`` says, the folder's exports are loaded again, and their differences to the run's own model are
    printed and written to ``export/checks.json``.

    Raises:
        UserError: If the folder holds no finished run with an adapter, or a target can't hold it or lacks its inputs.
    """
    finished = FinishedRun.read(Path(str(config.out)), config.model["trust_remote_code"], config.export.gguf)
    files = export_all(finished, config.export.targets or SMALL)
    files += checked(config, finished, Console(file=tolerant(sys.stdout)))
    warn_of_stale(finished)
    for path in files:
        print(path)
    return 0
