"""Parts of the oracles that train nothing: numbers drawn by name, and steps done of every allocation."""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from statistics import NormalDist

from qra_bo.trials import TrialSpec

log = logging.getLogger(__name__)


def named_normal(*words: str) -> float:
    """Return a standard normal number that is a function of these words, the same in every process."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest[:7], "big") + 0.5) / 2**56)


class StepsDone:
    """Steps done of every training, in memory or as one small file each in ``folder``.

    With files a promotion is charged its additional steps after a restart too.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int]] = {}

    def start(self, request: TrialSpec) -> int:
        """Return the steps done before this trial, and note its own as done; a repeated trial counts in full again."""
        name = request.training
        first, target = self._read(name)
        if target != request.steps:
            first, target = (target if target < request.steps else 0), request.steps
            self._write(name, first, target)
        return first

    def _read(self, name: str) -> tuple[int, int]:
        path = None if self._folder is None else self._folder / name
        if path is not None and name not in self._known and path.is_file():
            first, target = path.read_text(encoding="ascii").split()
            self._known[name] = int(first), int(target)
        return self._known.get(name, (0, 0))

    def _write(self, name: str, first: int, target: int) -> None:
        self._known[name] = first, target
        if self._folder is not None:
            temporary = self._folder / f".{name}.{os.getpid()}"
            try:
                self._folder.mkdir(exist_ok=True)  # never its parent: a run whose folder vanished must notice
                temporary.write_text(f"{first} {target}", encoding="ascii")
                temporary.replace(self._folder / name)
            except OSError as error:
                with suppress(OSError):  # half a file, if it was begun
                    temporary.unlink()
                log.warning("the steps done can't be noted in %s (%s)", self._folder, error.strerror)
