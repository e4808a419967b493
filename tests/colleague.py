"""Another user of the machine, who may read less than the one who made a run."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_colleague() -> Iterator[None]:
    """Act without root's rights, which ignore permissions; without effect for a user who is not root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def open_copy(folder: Path) -> Iterator[Path]:
    """A copy that every user may read, outside pytest's own folder, which none but its owner may enter."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        copy = Path(shutil.copytree(folder, Path(parent, "run")))
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        yield copy
