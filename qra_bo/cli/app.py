"""The Hydra application: one run or a sweep, with exit statuses that scripts can rely on."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qra_bo.cli.sweep import Job, SweepSummary, record_job
from qra_bo.config.compose import HYDRA_ERRORS, compose_config, config_from, hydra_message
from qra_bo.config.config_dir import check_config_dir
from qra_bo.config.overrides import inspect, normalise, with_default_model
from qra_bo.config.schema import RunConfig
from qra_bo.study.signals import Interrupts
from qra_bo.tasks import run_task
from qra_bo.utils.errors import ConfigError, QRABOError
from qra_bo.utils.redact import printable, redact

BUG = 1
_statuses: list[int] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (CONTRACT: *Exit status*).

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    _statuses.clear()
    SweepSummary.reset()
    previous = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    try:
        with Interrupts():  # before a run's own and after it too
            sys.argv = [sys.argv[0], *_checked(given)]
            _hydra_main()
    except QRABOError as error:
        return _report(error)
    except HYDRA_ERRORS as error:
        return _report(ConfigError(hydra_message(error)))
    except KeyboardInterrupt as error:
        print(f"qra_bo: {error or 'stopped'}", file=sys.stderr)
        return int(getattr(error, "exit_status", 130))
    finally:
        sys.argv = previous[0]
        if previous[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = previous[1]
    if SweepSummary.status is not None:
        return SweepSummary.status
    return _statuses[-1] if _statuses else 0


def _checked(argv: Sequence[str]) -> list[str]:
    """``argv`` with its overrides normalised, after everything that can be wrong with them was looked for.

    Raises:
        ConfigError: With every problem at once.
    """
    if any(a.startswith("--e") for a in argv):  # argparse takes any beginning of --experimental-rerun
        raise ConfigError("--experimental-rerun reads a pickle, which can run code, and is not taken; give the same "
                          "overrides again.")
    if any(a.startswith(("-sc", "--shell-completion", "--shell_completion")) for a in argv):
        return list(argv)
    given = [a for a in argv if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    flags = [a for a in argv if a not in given]  # argparse wants them first
    args = get_args_parser().parse_args([*flags, *normalise(given)])
    overrides = with_default_model(args.overrides)
    _check_folders(args.config_dir, args.config_path, overrides)
    sweep = args.multirun or any(a.replace(" ", "").lower() == "hydra.mode=multirun" for a in overrides)
    if args.config_name is None and args.config_path is None and not (args.help or args.hydra_help):
        if sweep or args.cfg or args.info:
            _, problems = inspect(overrides, sweep=sweep, config_dir=args.config_dir)
            if problems:
                raise ConfigError([p.message for p in problems])
        else:
            compose_config(overrides, args.config_dir)
    return [*flags, *overrides]


def _check_folders(config_dir: str | None, config_path: str | None, overrides: Sequence[str]) -> None:
    """Refuse folders of configuration that do more than give values, also where nothing is composed here.

    Raises:
        ConfigError: With what to do.
    """
    if any(a.lstrip("+~").startswith("hydra.searchpath") for a in overrides):
        raise ConfigError("hydra.searchpath is not taken; give a folder of your own groups with --config-dir.")
    check_config_dir(config_dir)
    if config_path is not None and not config_path.startswith("pkg://"):  # as Hydra reads it: beside this file
        check_config_dir(str(Path(__file__).parent / config_path.removeprefix("file://")))


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _hydra_main(cfg: DictConfig) -> int:
    """One job. Its user errors become its status, so that a sweep goes on."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        status, _ = run_job(cfg, None)
        _statuses.append(status)
        return status
    folder, number = Path(settings.sweep.dir), int(settings.job.num)
    overrides = " ".join(settings.overrides.task)
    record_job(folder, Job(number, overrides, None, ""))
    status, message = run_job(cfg, settings.sweep.subdir)
    record_job(folder, Job(number, overrides, status, message))
    return status


def run_job(cfg: DictConfig, subdir: str | None) -> tuple[int, str]:
    """Run one composed configuration; returns its exit status and, where that is not 0, why.

    Args:
        cfg: What Hydra composed.
        subdir: Name of this job's folder in a sweep, or ``None`` outside one.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        config = config_from({str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {})
        return run_task(config if subdir is None else _in_sweep(config, subdir)), ""
    except QRABOError as error:
        return _report(error), redact(str(error))
    except Exception as error:  # a bug: say where it is, and let the other jobs of a sweep go on
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        return BUG, redact(f"{type(error).__name__}: {error}")


def _in_sweep(config: RunConfig, subdir: str) -> RunConfig:
    """Every job of a sweep has a folder of its own, below ``out`` where that is given."""
    base = Path(config.out) if config.out is not None else Path(HydraConfig.get().sweep.dir)
    return config.with_changes(out=str(base / subdir))


def _report(error: QRABOError) -> int:
    if error.exit_status == BUG:
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    else:
        print(printable(redact(f"qra_bo: {' '.join(str(error).split())}")), file=sys.stderr)
    return error.exit_status
