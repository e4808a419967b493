"""``task=export``: write a finished run for other trainers, quantisers and servers."""

import sys
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.export.registry import SMALL, export_all
from qra_bo.pipeline.exports import checked, warn_of_stale
from qra_bo.utils.process import tolerant


def run(config: RunConfig) -> int:
    """Export the run in ``out`` and print the files written; returns 0.

    As ``export.check`` says, the folder's exports are loaded again, and their differences to the run's own model are
    printed and written to ``export/checks.json``.

    Raises:
        UserError: If the folder holds no finished run with an adapter, or a target can't hold it or lacks its inputs.
    """
    folder, trust = Path(str(config.out)), bool(config.model["trust_remote_code"])
    files = export_all(folder, config.export.targets or SMALL, config.export.merged_base, trust, config.export.gguf)
    files += checked(config, folder, Console(file=tolerant(sys.stdout)))
    warn_of_stale(config, folder)
    for path in files:
        print(path)
    return 0
