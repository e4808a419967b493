"""Follow a search with a tracker of your own: a listener gets every event of the journal and here writes a CSV file.

From the command line, with this folder on PYTHONPATH:
    python -m qra_bo +model=tiny oracle=synthetic logger._target_=own_tracker.CsvTracker +logger.file=trials.csv
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qra_bo


class CsvTracker:
    """Writes one line a finished trial.

    Args:
        folder: The run's folder; every listener gets it.
        file: Name of the CSV file in it, from ``logger.file``.
    """

    def __init__(self, folder: Path, file: str = "trials.csv") -> None:
        self._file = (folder / file).open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)

    def __call__(self, event: Mapping[str, Any]) -> None:
        if "loss" in event and "stage" in event:
            self._rows.writerow([event["id"], event["stage"], event["loss"], event["predicted_bytes"]])

    def close(self) -> None:
        self._file.close()


if __name__ == "__main__":
    result = qra_bo.search(["+model=tiny", "data=tiny", "oracle=synthetic", "effort=quick", "display=none",
                            "out=own_tracker", "logger._target_=__main__.CsvTracker", "+logger.file=trials.csv"])
    print((result.folder / "trials.csv").read_text(encoding="utf-8"))
