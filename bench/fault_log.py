"""Log of provoked faults, a line each: a benchmark that is stopped resumes from there."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qra_bo
from qra_bo.study.provenance import git_commit


class Tries:
    """Tries of faults, appended to a file by any process and read by any other.

    Args:
        path: Of the file; it need not exist, its folder must.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._git = path, git_commit(Path(qra_bo.__file__).parent)

    def add(self, fault: str, problem: str, in_the_middle: bool = False) -> None:
        """Note one try; ``problem`` is what went wrong, or nothing."""
        line = json.dumps({"fault": fault, "problem": problem, "in_the_middle": in_the_middle, "git": self._git})
        with self.path.open("ab", buffering=0) as file:  # one write at the end: lines of several processes stay whole
            file.write(line.encode() + b"\n")
            os.fsync(file.fileno())

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # cut off by a kill: that try is made again

    @property
    def tried(self) -> Counter[str]:
        """Tries by fault."""
        return Counter(t["fault"] for t in self._read())

    @property
    def good(self) -> Counter[str]:
        """Of these, those after which everything was as it should be."""
        return Counter(t["fault"] for t in self._read() if not t["problem"])

    @property
    def last(self) -> dict[str, str]:
        """What went wrong in the last try of every fault, or nothing."""
        return {t["fault"]: t["problem"] for t in self._read()}

    @property
    def in_the_middle(self) -> int:
        """Good tries that hit an evaluation with steps behind it."""
        return sum(t["in_the_middle"] for t in self._read() if not t["problem"])

    @property
    def commits(self) -> list[str]:
        """The versions of the program that were tried."""
        return sorted({t["git"] or "unknown" for t in self._read()})
