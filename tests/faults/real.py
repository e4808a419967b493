"""One real run of ``tiny`` with all that it writes, cache included, and what a damage to its files leads to."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from qra_bo.cli.app import main
from qra_bo.config import RunConfig
from qra_bo.execution.base import InProcessExecutor
from qra_bo.export.load import load
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.utils.errors import UserError

OVERRIDES = ("+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "eval.sequences=4",
             "fidelity.high=2", "fidelity.low=1", "final.steps=3", "device=cpu", "dtype=float32", "display=none",
             "quantizer.rounding=gptq", "quantizer.tokens=256", "adapter.lr=0.003", "method=random", "effort=quick",
             "effort.max_full_trials=1", "effort.uniform_baselines=1", "confirm.seeds=0", 
             "calibrate.lr_scales=[0.7,1.3]", "bits=[4,8]", "budget=uniform:4,4", "granularity=block")
UMASK = 0o026
"""An unusual one, so that a mode that does not follow from it shows."""
IDS = torch.arange(16).reshape(2, 8)
TIMES = ("cost", "provenance")
"""Parts of ``best.json`` that hold times."""


@dataclass(frozen=True)
class Outcome:
    """How a use of a damaged run ended: exit status, output, and whether the result was right.

    A report of what is left of a damaged journal differs, and has to name what it lacks.
    """

    status: int
    printed: str
    right: bool

    @property
    def problem(self) -> str:
        """What is wrong with it; empty for a right result and for a clear refusal."""
        if "Traceback" in self.printed:
            return "a traceback: " + self.printed.strip().splitlines()[-1]
        if self.status == 0:
            return "" if self.right or "Warning: " in self.printed else "a wrong result without a word"
        if self.status != 2:
            return f"status {self.status}: {self.printed[-300:]}"
        return "" if self.printed.strip() else "status 2 without a message"


def in_this_process(config: RunConfig, folder: Path, room: int | None = None) -> InProcessExecutor:
    """An executor whose oracle works here, in place of the one of ``qra_bo.pipeline.run``."""
    folder.mkdir(parents=True, exist_ok=True)
    return InProcessExecutor(make_oracle(config.to_dict(), str(folder)))


@contextlib.contextmanager
def _here(cache: Path) -> Iterator[None]:
    """Let the oracle work in this process, with a cache of its own and without the figures, which take longest."""
    with mock.patch("qra_bo.pipeline.run.make_executor", in_this_process), \
            mock.patch("qra_bo.report.html.PLOTS", {}), \
            mock.patch.dict(os.environ, {"QRA_BO_CACHE": str(cache)}):
        yield


def command(*arguments: str) -> tuple[int, str]:
    """Exit status and output of ``python -m qra_bo``."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main(list(arguments))
    return status, out.getvalue()


class RealRun:
    """A finished run in ``folder/run`` and its cache in ``folder/cache``, both as they were written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        before = os.umask(UMASK)
        try:
            with _here(folder / "cache"):
                status, printed = command(*OVERRIDES, f"out={folder / 'run'}")
        finally:
            os.umask(before)
        if status:
            raise RuntimeError(printed)
        self.files = tuple(sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()))
        self.logits = self._logits(folder)
        self.best = self._best(folder)

    def _logits(self, folder: Path) -> torch.Tensor:
        model, _ = load(folder / "run")
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=IDS).logits
        return logits

    def _best(self, folder: Path) -> dict[str, Any]:
        best = json.loads((folder / "run" / "best.json").read_text())
        return {key: value for key, value in best.items() if key not in TIMES}

    def copy(self, folder: Path) -> Path:
        """A copy of run and cache in ``folder``."""
        return Path(shutil.copytree(self.folder, folder))

    def loaded(self, folder: Path) -> Outcome:
        """Load the run and compare its logits."""
        try:
            return Outcome(0, "", torch.equal(self._logits(folder), self.logits))
        except UserError as error:
            return Outcome(2, str(error), False)

    def resumed(self, folder: Path) -> Outcome:
        """Run the same command again, and compare what it leaves."""
        with _here(folder / "cache"):
            status, printed = command(*OVERRIDES, f"out={folder / 'run'}")
        return Outcome(status, printed, status == 0 and self._best(folder) == self.best)

    def reported(self, folder: Path) -> Outcome:
        """Write the report again, and compare its comparison and trials."""
        with _here(folder / "cache"):
            status, printed = command("task=report", f"out={folder / 'run'}")
        return Outcome(status, printed, status == 0 and self._report(folder) == self._report(self.folder))

    def _report(self, folder: Path) -> list[Any]:
        data = json.loads((folder / "run" / "report.json").read_text())
        return [data[key] for key in ("answer", "comparison", "units", "trials", "provenance")]

    def exported(self, folder: Path) -> Outcome:
        """Write the exports again, and compare every file with the first ones."""
        with _here(folder / "cache"):
            status, printed = command("task=export", f"out={folder / 'run'}")
        same = all((folder / p).read_bytes().replace(os.fsencode(folder), os.fsencode(self.folder))
                   == (self.folder / p).read_bytes() for p in self.files
                   if p.parts[1] == "export" or p.name == "README.md") if status == 0 else False
        return Outcome(status, printed, same)


USES: dict[str, Callable[[RealRun, Path], Outcome]] = {
    "load": RealRun.loaded, "resume": RealRun.resumed, "report": RealRun.reported, "export": RealRun.exported}
