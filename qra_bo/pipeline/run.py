"""One run from a checked configuration: setting, executor, engine, report and exports."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.execution.base import Executor
from qra_bo.finetune.data.hub import check_package
from qra_bo.memory.budget import check_budget, free_bytes, parse_budget, parse_size, resolve_budget
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.build import is_remote, make_executor, make_memory
from qra_bo.pipeline.folders import run_folder
from qra_bo.pipeline.memory import check_ram
from qra_bo.pipeline.plan import plan_rows
from qra_bo.report.data import load_run
from qra_bo.report.html import write_report
from qra_bo.report.live import LiveView
from qra_bo.report.mirror import OptunaMirror, storage_url
from qra_bo.report.tables import print_plan, print_result
from qra_bo.report.trackers import make_listener
from qra_bo.searchers import make_searcher
from qra_bo.sensitivity.io import given_profile
from qra_bo.sensitivity.rehearsal import rehearsal_profile
from qra_bo.study.device_allowance import allowance_for
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.results import load_study
from qra_bo.study.search_loop import MakeSearcher
from qra_bo.study.setting import Setting
from qra_bo.study.signals import RunInterrupted
from qra_bo.study.trial_runner import Listener
from qra_bo.utils.device import planned_device, resolve_device


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        folder: The run's folder.
        best: The contents of ``best.json``; of several budgets those of ``budgets.json``.
        exit_status: 0, or 3 where the first winner measured over the budget; the worst of several budgets.
        runs: The runs of several budgets that ended well, in the order of the budgets; else empty.
    """

    folder: Path
    best: Mapping[str, Any]
    exit_status: int
    runs: "tuple[Result, ...]" = ()


def run_one_budget(config: RunConfig) -> Result:
    """Find the best allocation within the single budget of ``config``, fine-tune it and write everything down.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    folder = run_folder(config)
    setting = make_setting(config, (folder,))
    return run_within(folder, setting, checked_budget(setting, folder), make_executor(config, folder))


def make_setting(config: RunConfig, begun: Sequence[Path] = ()) -> Setting:
    """Return space, memory model and given profile of a configuration.

    Runs in the folders ``begun`` go on with the allocator's allowance that they began with.

    Raises:
        DeviceError: If fine-tuning on a CPU needs more RAM than is available.
        MissingExtraError: If the data comes from the hub and the package that fetches it is not installed.
        UserError: If the model's shapes are not available, or the given profile lacks a measurement.
    """
    device, spec, path = _device_type(config), make_spec(config), config.sensitivity.path
    space = make_space(config, spec)
    trains_here = config.oracle.trains and not is_remote(config)
    if trains_here and (config.task != "profile" or path is None):  # a given profile needs no data
        check_package(config.data)
    if trains_here and device == "cpu":
        check_ram(config, spec, space)
    profile = None if path is None else given_profile(Path(path).expanduser(), space.units, config.format_names)
    return Setting(config, space, make_memory(config, spec, device, allowance_for(config, device, begun)), profile)


def _device_type(config: RunConfig) -> str:
    """Return ``"cuda"`` or ``"cpu"``: where fine-tuning would run; a simulation stands in for a GPU that is there."""
    if not config.oracle.trains or (is_remote(config) and config.device != "auto"):
        return planned_device(config.device)
    return "cuda" if resolve_device(config.device).startswith("cuda") else "cpu"


def checked_budget(setting: Setting, folder: Path) -> int:
    """Return the bytes of the single budget; ``auto`` keeps its value from when the run in ``folder`` began.

    Raises:
        BudgetError: If the device can't meet it, or nothing fits it.
        JournalError: If the run's journal can't be read.
    """
    config, memory = setting.config, setting.memory
    auto = parse_budget(config.budget[0]).auto
    if auto and (folder / JOURNAL_NAME).exists():
        budget = load_study(folder).budget_bytes
    else:
        free = free_bytes(config.device if memory.shape.device == "cuda" else "cpu") if auto else None
        budget = resolve_budget(config.budget[0], memory, setting.space, free=free,
                                headroom=parse_size(config.memory.headroom))
    check_budget(budget, setting.costs(budget), setting.space, memory)
    return budget


def run_within(folder: Path, setting: Setting, budget: int, executor: Executor) -> Result:
    """Begin or continue one run within ``budget`` bytes; closes ``executor``.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    config, make = setting.config, searcher_factory(setting.config)
    # Built once before anything is measured, so that bad options or a given profile without its needs end the run now.
    make(setting.problem(budget, setting.profile or rehearsal_profile(setting.space),
                         float(config.effort.max_full_trials)))
    with ExitStack() as stack:
        view, listeners = _listeners(config, folder, stack)
        if view is not None and not (folder / JOURNAL_NAME).exists():
            print_plan(view.console, f"{config.model_name} within {budget / 1e6:,.1f} MB, effort={config.effort.name}; "
                       "times are rough guesses from the number of operations", plan_rows(setting),
                       setting.full_trial_tokens)
        engine = Engine(folder, setting, budget, executor, make, fine_tunes=config.oracle.trains, listeners=listeners,
                        progress=quiet if view is None else view.progress)
        try:
            outcome = engine.run()
        except RunInterrupted as stop:
            raise RunInterrupted(stop.signum, folder if len(config.budget) == 1 else folder.parent) from stop
    return _written(config, folder, outcome)


def searcher_factory(config: RunConfig) -> MakeSearcher:
    """Return what builds the configured searcher for a problem."""
    target = config.method.target
    return lambda problem: make_searcher(target, problem)


def _listeners(config: RunConfig, folder: Path, stack: ExitStack) -> tuple[LiveView | None, list[Listener]]:
    """Return the live view, if any, and all listeners to the run's events; ``stack`` closes them."""
    tracker = make_listener(config.logger.target, folder)
    if tracker is not None:
        stack.callback(tracker.close)
    view = stack.enter_context(live_view(config)) if config.display != "none" else None
    listeners: list[Listener] = [listener for listener in (view, tracker) if listener is not None]
    if config.mirror is not None:
        listeners.append(stack.enter_context(OptunaMirror(storage_url(config.mirror, folder), folder)))
    return view, listeners


def live_view(config: RunConfig) -> LiveView:
    """Return the view of progress: a panel on a terminal, lines elsewhere and with ``display=plain``."""
    return LiveView(Console(stderr=True, force_terminal=False) if config.display == "plain" else None)


@contextmanager
def oracle_session(config: RunConfig) -> Iterator[Executor]:
    """Give an executor to a task that is no run: its checkpoints last as long as it does."""
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as folder:
        executor = make_executor(config, Path(folder))
        try:
            yield executor
        finally:
            executor.close()


def _written(config: RunConfig, folder: Path, outcome: RunOutcome) -> Result:
    """Write report and exports of a finished run, and its answer on the terminal."""
    from qra_bo.export.registry import export_all  # loads torch, which a simulation does without

    files = write_report(folder)
    if (folder / "adapter").is_dir():
        files += export_all(folder)
    if config.display != "none":
        parts = [path.relative_to(folder).parts for path in (folder / "best.json", *files)]
        shown = dict.fromkeys(p[0] + "/" * (len(p) > 1) for p in parts)
        print_result(Console(), load_run(folder), folder, list(shown))
    return Result(folder, outcome.best, outcome.exit_status)
