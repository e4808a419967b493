"""Record of a sweep's jobs: a line for every start and end in the sweep's folder, whatever launcher runs them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
        overrides: Its own overrides.
        status: Exit status, or ``None`` where it never ended.
        message: Reason of a status other than 0, or empty.
    """

    number: int
    overrides: str
    status: int | None
    message: str


def record_job(folder: Path, job: Job) -> None:
    """Append the job's line, in one write, so that jobs may run side by side."""
    with (folder / JOBS).open("ab", buffering=0) as file:
        file.write(f"{json.dumps(asdict(job))}\n".encode())


def read_jobs(folder: Path) -> list[Job]:
    """Return the last line of every job, by number."""
    path = folder / JOBS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    jobs = {job.number: job for job in (Job(**json.loads(line)) for line in lines)}
    return [jobs[number] for number in sorted(jobs)]


def summary(jobs: Sequence[Job], folder: Path) -> str:
    """Return the sweep in lines of text."""
    bad = sum(job.status != 0 for job in jobs)
    lines = [f"{len(jobs)} jobs in {folder}, {bad} not done:" if bad else f"{len(jobs)} jobs in {folder}, all done:"]
    for job in jobs:
        state = "done" if job.status == 0 else "died" if job.status is None else f"status {job.status}"
        lines.append(f"  {job.number:>3}  {state:<9} {job.overrides}")
        lines += [f"       {job.message}"] if job.message else []
    return "\n".join(lines)


class SweepSummary(Callback):
    """Hydra callback that prints the summary at the end of a sweep and keeps the worst status for the process."""

    status: int = 0

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary; Hydra calls this once, in the launching process."""
        folder = Path(str(config.hydra.sweep.dir))
        jobs = read_jobs(folder)
        print(summary(jobs, folder))
        SweepSummary.status = worst([DIED if job.status is None else job.status for job in jobs])
