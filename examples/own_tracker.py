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
        folder: The run's folder; every listener gets it. It exists from the first event on.
        file: Name of the CSV file in it, from ``logger.file``.
    """

    def __init__(self, folder: Path, file: str = "trials.csv") -> None:
        self._path = folder / file

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "header":  # a resumed run gives all its events again
            self._path.write_text("id,stage,loss,predicted_bytes\n", encoding="utf-8")
        if "loss" in event and "stage" in event:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([event["id"], event["stage"], event["loss"], event["predicted_bytes"]])


if __name__ == "__main__":
    result = qra_bo.search(["+model=tiny", "data=tiny", "oracle=synthetic", "effort=quick", "display=none",
                            "out=own_tracker", "logger._target_=__main__.CsvTracker", "+logger.file=trials.csv"])
    print((result.folder / "trials.csv").read_text(encoding="utf-8"))
