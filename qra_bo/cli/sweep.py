"""A sweep's jobs and how they ended: a line each in the sweep's folder, whatever launcher ran them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from qra_bo.utils.errors import worst

JOBS = "jobs.jsonl"
DIED = 1


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sweep.

    Args:
        number: Its number in the sweep.
        overrides: What tells it from the others.
        status: Exit status, or ``None`` where it never ended.
        message: Why it is not 0, or empty.
    """

    number: int
    overrides: str
    status: int | None
    message: str


def record_job(folder: Path, job: Job) -> None:
    """Append the job's line; a write of one line is atomic, so that jobs may run side by side."""
    line = json.dumps({"number": job.number, "overrides": job.overrides, "status": job.status,
                       "message": job.message}) + "\n"
    handle = os.open(folder / JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read_jobs(folder: Path) -> list[Job]:
    """Every job by number, with the last that was recorded of it."""
    path = folder / JOBS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    jobs = {job.number: job for job in (Job(**json.loads(line)) for line in lines)}
    return [jobs[number] for number in sorted(jobs)]


def summary(jobs: Sequence[Job], folder: Path) -> str:
    """The sweep in lines of text."""
    bad = sum(job.status != 0 for job in jobs)
    lines = [f"{len(jobs)} jobs in {folder}, {bad} not done:" if bad else f"{len(jobs)} jobs in {folder}, all done:"]
    for job in jobs:
        state = "done" if job.status == 0 else "died" if job.status is None else f"status {job.status}"
        lines.append(f"  {job.number:>3}  {state:<9} {job.overrides}")
        lines += [f"       {job.message}"] if job.message else []
    return "\n".join(lines)


class SweepSummary(Callback):
    """Hydra callback: prints the summary at the end of a sweep and keeps the worst status for the process."""

    status: int | None = None

    @classmethod
    def reset(cls) -> None:
        """Forget the last sweep."""
        cls.status = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called in the launching process, once."""
        folder = Path(str(config.hydra.sweep.dir))
        jobs = read_jobs(folder)
        print(summary(jobs, folder))
        SweepSummary.status = worst([DIED if job.status is None else job.status for job in jobs])
