"""The command line: one run or a sweep, with exit statuses that scripts can rely on."""

import functools
import itertools
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter

from qra_bo.cli.help import public_options, short_help
from qra_bo.config.check import Problem
from qra_bo.config.compose import (
    HYDRA_ERRORS,
    MAIN,
    compose_plain,
    config_from,
    hydra_app,
    hydra_message,
    resolved,
    search_path,
    with_choices,
)
from qra_bo.config.overrides import CONF, inspect, normalise, repeated, unknown_flag, with_default_model
from qra_bo.config.presets import choices
from qra_bo.config.rules import ON_A_RUN
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.tasks import run_task
from qra_bo.utils.errors import ConfigError, OutputError, QRABOError, WorkerError, from_lack_of_memory, from_system
from qra_bo.utils.redact import printable, redact
from qra_bo.utils.version import __version__

BUG = 1
SEVERITY = (0, 3, 2, BUG)
"""Exit statuses from best to worst: done, delivered with a warning, a user error, a bug; a signal is worse still."""
JOBS = "jobs.jsonl"
"""A line for every start and end of a job in the sweep's folder, whatever launcher runs it."""
NAMING = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Options whose value is the next argument, which may hold ``=``."""
COMPLETION = ("-sc", "--shell-completion", "--shell_completion")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's, without the program's name); return the exit status."""
    try:
        with Interrupts():  # before a run's own and after it too
            return _run(list(sys.argv[1:] if argv is None else argv))
    except QRABOError as error:
        return _report(error)
    except HYDRA_ERRORS as error:
        return _report(ConfigError(hydra_message(error)))
    except OSError as error:  # of Hydra: a sweep's folder, --config-dir
        return _report(from_system(error) or OutputError(f"{error.filename or 'a file'} can't be used "
                                                         f"({error.strerror}); give another path"))
    except KeyboardInterrupt as error:
        print(f"qra_bo: {error or 'stopped'}", file=sys.stderr)
        return int(getattr(error, "exit_status", 130))


def _run(argv: list[str]) -> int:
    """Check the overrides, then compose once and run the job, or start the sweep.

    Raises:
        ConfigError: With every problem of the overrides at once, where no job reports them.
    """
    if not argv:  # what the program is, and what it would do
        print(short_help())
        return _run(["task=memory"])
    if not {"--help", "-h"}.isdisjoint(argv):
        if "all" not in argv:
            print(short_help(), end="")
            return 0
        argv = [a for a in argv if a != "all"]
    if "--version" in argv:
        print(f"qra_bo {__version__}")
        return 0
    if any(a.startswith("--e") for a in argv):  # argparse takes any beginning of --experimental-rerun
        raise ConfigError("--experimental-rerun reads a pickle, which can run code, and is not taken; give the same "
                          "overrides again.")
    if any(a.startswith(COMPLETION) for a in argv):
        return _show(argv)
    is_key = [before not in NAMING and not a.startswith("-") and ("=" in a or a.startswith("~"))
              for before, a in zip(["", *argv[:-1]], argv, strict=True)]
    given = list(itertools.compress(argv, is_key))
    flags = [a for a, key in zip(argv, is_key, strict=True) if not key]  # argparse wants them first
    args, unknown = get_args_parser().parse_known_args([*flags, *normalise(given)])
    if unknown := [a for a in unknown if a.startswith("-")]:
        raise ConfigError([unknown_flag(flag).message for flag in unknown])
    sweep = args.multirun or any(a.replace(" ", "").lower() == "hydra.mode=multirun" for a in args.overrides)
    shows = args.help or args.hydra_help or args.cfg or args.info
    good, problems = inspect(args.overrides, sweep, args.config_dir)
    if problems and (sweep or args.cfg or args.info):
        raise ConfigError([p.message for p in problems])
    if shows:
        named = with_default_model(good)
        with public_options() if args.help else nullcontext():
            return _show([*flags, *([] if sweep else choices(named, compose_plain(named, args.config_dir))), *named])
    for line in repeated(good):
        print(f"qra_bo: {line}", file=sys.stderr)
    overrides = [*with_default_model(good), *search_path(args.config_dir)]
    with hydra_app(args.config_dir, args.config_path) as app:
        if sweep:
            try:
                app.multirun(args.config_name or MAIN, _job, [*overrides, "hydra.mode=MULTIRUN"])
            except RunInterrupted as stop:  # out= would put another sweep into the folder of one job
                begun = None if SweepSummary.folder == Path() else SweepSummary.folder
                raise RunInterrupted(stop.signum, begun, "hydra.sweep.dir") from stop
            except Exception as error:  # each launcher has types of its own
                if isinstance(error, (QRABOError, OSError, *HYDRA_ERRORS)) or not SweepSummary.is_cut_off():
                    raise
                raise WorkerError(f"a process of hydra/launcher ended before its job ({type(error).__name__}); the "
                                  "journals of jobs that began are whole: run the same command again with "
                                  f"hydra.sweep.dir={SweepSummary.folder} to go on") from error
            return SweepSummary.status
        try:
            done = app.run(args.config_name or MAIN, functools.partial(_job, problems=problems), overrides)
        except HYDRA_ERRORS as error:
            raise ConfigError([*(p.message for p in problems), hydra_message(error)]) from error
    return int(done.return_value)


def _show(argv: Sequence[str]) -> int:
    """Leave ``--help``, ``--cfg``, ``--info`` and tab completion to Hydra, which takes the arguments of the process."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=MAIN)(_job)()
    finally:
        sys.argv = before
    return 0


def _job(composed: DictConfig, problems: Sequence[Problem] = ()) -> int:
    """Run one composed configuration, without the overrides that have ``problems``; return its exit status."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return _status(composed, None, problems)[0]
    folder = Path(settings.sweep.dir)
    job = Job(int(settings.job.num), redact(" ".join(as_given(settings.overrides.task))), None, "")
    record_job(folder, job)
    status, message = _status(composed, settings.sweep.subdir)
    record_job(folder, replace(job, status=status, message=message))
    return status


def as_given(overrides: Sequence[str]) -> list[str]:
    """Return Hydra's overrides with their interpolations, whose values may be secrets."""
    raw = OmegaConf.to_container(overrides, resolve=False) if isinstance(overrides, ListConfig) else overrides
    return list(map(str, raw or ()))


def _status(composed: DictConfig, subdir: str | None, problems: Sequence[Problem] = ()) -> tuple[int, str]:
    """Return the exit status of a job and, where that is not 0, the reason; ``subdir`` names its folder in a sweep."""
    try:
        settings = HydraConfig.get()
        given, sources = settings.overrides.task, settings.runtime.config_sources
        folder = next((s.path for s in sources if s.provider.startswith("hydra.searchpath")), None)
        config = config_from(with_choices(given, _composed, resolved(composed)), problems, as_given(given), folder)
        if subdir is not None and config.task not in ON_A_RUN:  # a folder of its own, below out where that is given
            config = config.with_changes(out=str(Path(config.out or HydraConfig.get().sweep.dir) / subdir))
        return run_task(config), ""
    except Exception as error:
        known = error if isinstance(error, QRABOError) else from_system(error) or from_lack_of_memory(error)
        if isinstance(error, OmegaConfBaseException):
            known = ConfigError(hydra_message(error))
        if known is not None:
            return _report(known), redact(str(known))
        # a bug, of a part of the user's own too: say where it is, and let the other jobs of a sweep go on
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return BUG, redact(f"{type(error).__name__}: {error}")


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what the running job's configuration composes to with other overrides."""
    settings = HydraConfig.get()
    main = next(source.path for source in settings.runtime.config_sources if source.provider == "main")
    own = [text for text in settings.overrides.hydra if text.startswith("hydra.searchpath=")]
    with hydra_app(config_path=main):
        return resolved(hydra.compose(settings.job.config_name, [*overrides, *own]))


def _report(error: QRABOError) -> int:
    if error.exit_status == BUG:
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    else:
        print(printable(redact(f"qra_bo: {' '.join(str(error).split())}")), file=sys.stderr)
    return error.exit_status


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sweep; ``status`` is ``None`` where it never ended, ``message`` the reason of one other than 0."""

    number: int
    overrides: str
    status: Annotated[int, Field(ge=0, le=255)] | None
    message: str


def record_job(folder: Path, job: Job) -> None:
    """Append the job's line, in one write, so that jobs may run side by side."""
    with (folder / JOBS).open("ab", buffering=0) as file:
        file.write(f"{json.dumps(asdict(job))}\n".encode())


def read_jobs(folder: Path) -> list[Job]:
    """Return the last line of every job, by number."""
    path = folder / JOBS
    jobs: dict[int, Job] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):  # a full disk cut it off, or it is someone else's: that job did not end
            job = TypeAdapter(Job).validate_json(line, strict=True)
            jobs[job.number] = job
    return [jobs[number] for number in sorted(jobs)]


def summary(jobs: Sequence[Job], folder: Path) -> str:
    """Return the sweep in lines of text."""
    bad = sum(job.status != 0 for job in jobs)
    lines = [f"{len(jobs)} jobs in {folder}, {bad} not done:" if bad else f"{len(jobs)} jobs in {folder}, all done:"]
    for job in jobs:
        state = "done" if job.status == 0 else "died" if job.status is None else f"status {job.status}"
        lines.append(f"  {job.number:>3}  {state:<9} {job.overrides}")
        lines += [f"       {job.message}"] if job.message else []
    return printable("\n".join(lines))


class SweepSummary(Callback):
    """Hydra callback that prints the summary at the end of a sweep and keeps the worst status for the process.

    Hydra calls it in the launching process alone.
    """

    status: int = BUG  # until the jobs are counted: Hydra only logs what a callback raises
    folder = Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the sweep's folder."""
        SweepSummary.folder = Path(str(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary, and what the runs found."""
        from qra_bo.tasks.report import show_runs  # loads matplotlib, which one run may do without
        jobs = read_jobs(SweepSummary.folder)
        if not jobs:
            SweepSummary.status = _report(ConfigError("the sweep has no job; a value such as range(0,0) is empty"))
            return
        print(summary(jobs, SweepSummary.folder))
        statuses = [BUG if job.status is None else job.status for job in jobs]
        try:
            show_runs(Path(str(config.out or SweepSummary.folder)))
        except QRABOError as error:
            statuses.append(_report(error))
        SweepSummary.status = max(statuses, key=lambda s: SEVERITY.index(s) if s in SEVERITY else len(SEVERITY))

    @classmethod
    def is_cut_off(cls) -> bool:
        """Return whether a job began and did not end; print the summary then."""
        jobs = read_jobs(cls.folder)
        if all(job.status is not None for job in jobs):
            return False
        print(summary(jobs, cls.folder))
        return True
