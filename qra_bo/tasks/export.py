"""``task=export``: write a finished run for other trainers, quantisers and servers."""

from pathlib import Path

from qra_bo.config import RunConfig
from qra_bo.export.registry import export_all


def run(config: RunConfig) -> int:
    """Export the run in ``out`` and print what was written; returns 0.

    Raises:
        OutputError: If the folder holds no finished run with an adapter.
    """
    for path in export_all(Path(str(config.out))):
        print(path)
    return 0
