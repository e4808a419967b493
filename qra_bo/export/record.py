"""``export/made_from.json``: the adapter that each export with weights, and ``checks.json``, was made with.

A run that is extended may deliver another adapter, while its folder keeps exports of the former one. An export that was
interrupted is not in the file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qra_bo.export.run import FinishedRun, read_object
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import write_json

FILE = "export/made_from.json"


def current_exports(run: FinishedRun) -> set[str]:
    """Return the names of what was written to its end with the adapter that the run has now: targets, ``checks.json``.
    """
    return {name for name, adapter in _read(run).items() if adapter == run.manifest.get("adapter_sha256")}


@contextmanager
def recorded(run: FinishedRun, target: str) -> Iterator[bool]:
    """Take a target off the record, and put it there after the block, which is told whether it was current. Raises
    ``OSError`` if that can't be written."""
    current = target in current_exports(run)
    path, others = run.folder / FILE, {name: adapter for name, adapter in _read(run).items() if name != target}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, others)
    yield current
    write_json(path, {**others, target: run.manifest.get("adapter_sha256")})


def _read(run: FinishedRun) -> dict[str, Any]:
    try:
        return read_object(run.folder / FILE)
    except OutputError:  # no export yet; of a damaged file nothing is known
        return {}
