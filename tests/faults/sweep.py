"""The corruption sweep: every file that a real run wrote, damaged in every way, under every use of the run."""

import random
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.damage import DAMAGES
from tests.faults.real import USES, RealRun

NOT_READ = ("plots", "report.html")
"""Parts of a run that no command reads again."""


@dataclass(frozen=True)
class Case:
    """A damage to one file of a run, or to two of a kind that are swapped, under one use."""

    file: Path
    damage: str
    use: str

    def __str__(self) -> str:
        return f"{self.damage} {self.file}, {self.use}"


def cases(run: RealRun) -> Iterator[Case]:
    """Every case of the files that the run wrote in its folder; its cache has a sweep of its own."""
    for file in run.files:
        if file.parts[0] == "run" and file.parts[1] not in NOT_READ:
            yield from (Case(file, damage, use) for damage in DAMAGES for use in USES)


def problem_with_cache(run: RealRun, damage: str) -> str:
    """Damage every file of a copy of the cache, and run the same search anew with it; return what was wrong with the
    outcome, or nothing."""
    with tempfile.TemporaryDirectory() as parent:
        folder = run.copy(Path(parent, "copy"))
        shutil.rmtree(folder / "run")
        DAMAGES[damage]([folder / p for p in run.files if p.parts[0] == "cache"], random.Random(damage))
        return run.resumed(folder).problem


def problem_of(run: RealRun, case: Case) -> str:
    """Damage a copy of the run and use it; return what was wrong with the outcome, or nothing."""
    rng = random.Random(zlib.crc32(str(case).encode()))
    with tempfile.TemporaryDirectory() as parent:
        folder = run.copy(Path(parent, "copy"))
        alike = [p for p in run.files if p.suffix == case.file.suffix and p.parts[0] == "run" and p != case.file]
        files = [folder / case.file]
        if case.damage == "swap":
            if not alike:
                return ""
            files.append(folder / rng.choice(alike))
        DAMAGES[case.damage](files, rng)
        try:
            return USES[case.use](run, folder).problem
        except Exception as error:  # the sweep goes on, and the table names it
            return f"a raw {type(error).__name__}: {error}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
