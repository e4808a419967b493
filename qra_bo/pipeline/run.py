"""A run from a checked configuration: setting, budget, executor, engine, report and exports."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.executors import make_executor
from qra_bo.pipeline.exports import write_exports
from qra_bo.pipeline.folders import run_folder
from qra_bo.pipeline.given import judged, read_allocation, with_ladders_of
from qra_bo.pipeline.listeners import announced, listeners_of
from qra_bo.pipeline.prepare import checked_budget, make_setting
from qra_bo.pipeline.text import RunText
from qra_bo.report.data import load_run
from qra_bo.report.html import write_report
from qra_bo.report.tables import print_result
from qra_bo.searchers import make_searcher
from qra_bo.sensitivity.profile import typical_profile
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.lines import begun_study
from qra_bo.study.search_loop import MakeSearcher
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.formatting import number
from qra_bo.utils.process import tolerant


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """What a finished run came to.

    Args:
        folder: The run's folder.
        best: The contents of ``best.json``.
        exit_status: 0, or 3 where the first winner measured over the budget.
    """

    folder: Path
    best: Mapping[str, Any]
    exit_status: int

    def __repr__(self) -> str:
        best = self.best
        return f"Result({self.folder}: {best['winner_kind']} allocation of {best['model']}, loss " \
            f"{number(best['loss'])}, {best['verdict']})"


def run(config: RunConfig) -> Result:
    """Find the best allocation within the budget of ``config``, or take the one that it gives; fine-tune it and write
    everything down. A run that has begun in the folder goes on.

    Raises:
        UserError: If the input or the environment can't work, or a given allocation measured over the budget.
        RunInterrupted: On a signal that stops a run, after a clean journal.
    """
    given, advice = None, None
    if config.allocation is not None:
        given, config = read_allocation(config, make_space(config, make_spec(config)))
    folder, text = run_folder(config), RunText(config)
    setting = make_setting(config, folder, text, given)
    config = setting.config
    budget = checked_budget(setting, folder)
    if given is None:
        setting, advice = judged(setting, budget)
    begun = begun_study(folder)
    setting, make = dataclasses.replace(setting, sequences=text.show(begun)), searcher_factory(config)
    trained = config if setting.given is None else with_ladders_of(config, setting.given.allocations)
    if setting.given is None and config.effort.max_full_trials:
        # Built once before anything is measured, so that bad options end the run now.
        make(setting.problem(budget, typical_profile(setting.space), float(config.effort.max_full_trials)))
    executor = make_executor(trained, folder, budget if config.memory.scope == "peak" else None)
    try:
        with ExitStack() as stack:
            view, listeners = listeners_of(config, folder, stack)
            if view is not None and begun is not None:
                view.resumes(begun)
            elif view is not None:
                listeners.append(announced(setting, budget, advice, view.console))
            engine = Engine(folder, setting, budget, executor, make, fine_tunes=config.oracle.trains,
                            listeners=listeners, progress=quiet if view is None else view.progress)
            outcome = engine.run()
        return _written(config, folder, outcome)
    except RunInterrupted as stop:
        raise RunInterrupted(stop.signum, folder) from stop


def searcher_factory(config: RunConfig) -> MakeSearcher:
    """Return what builds the configured searcher for a problem."""
    return functools.partial(make_searcher, config.method.target)


def _written(config: RunConfig, folder: Path, outcome: RunOutcome) -> Result:
    """Write report and exports of a finished run, and its answer on the terminal."""
    console = None if config.display == "none" else Console(file=tolerant(sys.stdout))
    files, trained = write_report(folder), (folder / "adapter").is_dir()
    if console is not None:  # before exports are made and checked, which takes a while
        parts = [path.relative_to(folder).parts for path in (folder / "best.json", *files)]
        shown = dict.fromkeys(p[0] + "/" * (len(p) > 1) for p in parts)
        print_result(console, load_run(folder), folder, [*shown, *(["adapter/", "export/"] if trained else ())])
    if trained:
        write_exports(config, folder, console)
    return Result(folder, outcome.best, outcome.exit_status)
