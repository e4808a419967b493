"""Runs from a checked configuration, one for each budget: setting, executor, engine, report and exports."""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import NOT_OF_THE_RESULT, RunConfig, make_space, make_spec
from qra_bo.config.presets import preset_notes
from qra_bo.execution.base import Executor
from qra_bo.memory.advice import Advice
from qra_bo.memory.budget import check_budget, parse_budget
from qra_bo.memory.serving import CONSUMERS, serving_note
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.pipeline.build import make_executor, make_memory, training_device
from qra_bo.pipeline.data import RunText
from qra_bo.pipeline.estimate import FirstTrial, basis, card_of
from qra_bo.pipeline.exports import write_exports
from qra_bo.pipeline.folders import SUMMARY_NAME, as_begun, journals, path_name, run_folder
from qra_bo.pipeline.forecast import plan_rows
from qra_bo.pipeline.given import check_given, judged, read_allocation, with_ladders_of
from qra_bo.pipeline.plan import budgets_of, check_card, check_ram, needs_of
from qra_bo.report.data import load_run
from qra_bo.report.html import write_report
from qra_bo.report.live import LiveView
from qra_bo.report.opening import print_needs
from qra_bo.report.tables import print_line, print_plan, print_result, print_table
from qra_bo.report.text import ITSELF, allocation_html, allocation_text, size
from qra_bo.report.trackers import make_listener
from qra_bo.searchers import make_searcher
from qra_bo.sensitivity.io import given_profile
from qra_bo.sensitivity.profile import rehearsal_profile
from qra_bo.study import JOURNAL_NAME, Engine, Listener, MakeSearcher, RunInterrupted, RunOutcome, Setting
from qra_bo.study.baselines import check_uniform
from qra_bo.study.device_allowance import allowance_for
from qra_bo.study.journal import Event
from qra_bo.study.results import begun_study
from qra_bo.study.shared import SharedExecutor
from qra_bo.study.state import COMPARISON
from qra_bo.utils import errors
from qra_bo.utils.errors import BudgetError, QRABOError, worst
from qra_bo.utils.files import write_json, writing
from qra_bo.utils.numbers import DASH, number, signed
from qra_bo.utils.process import tolerant

OF_ALL = (errors.ConfigError, errors.ModelError, errors.DataError, errors.DeviceError, errors.MissingExtraError)
"""Errors that every further budget would meet too."""
COMPARING = (COMPARISON, "confirmation")
"""Stages after which a report can be read."""
SUMMARISED = ("winner_kind", "average_bits", "average_rank", "loss", "loss_se", "metric", "search_loss",
              "searched", "versus_best_uniform", "oracle")  # fields of best.json in budgets.json


@dataclasses.dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        if self.runs:
            return f"Result({self.folder}, {', '.join(map(repr, self.runs))})"
        return f"Result({self.folder}: {allocation_text(self.best)})"

    def _repr_html_(self) -> str:
        return "".join(allocation_html(run.best) for run in self.runs or (self,))


def run_one_budget(config: RunConfig) -> Result:
    """Find the best allocation within the single budget of ``config``, fine-tune it and write everything down.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On a signal that stops a run, after a clean journal.
    """
    folder, text = run_folder(config), RunText(config)
    setting = make_setting(config, (folder,), text)
    budget = checked_budget(setting, folder)
    setting, advice = judged(setting, budget)
    needed = config if setting.given is None else with_ladders_of(config, setting.given.allocations)
    setting = dataclasses.replace(setting, sequences=text.show((folder,)))
    return run_within(folder, setting, budget, make_executor(as_begun(needed, (folder,)), folder), advice)


def train_given(config: RunConfig) -> Result:
    """Fine-tune ``config.allocation`` within its budget, without a search, and write down what a search does.

    Raises:
        UserError: If the input or the environment can't work, or the allocation measured over the budget.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    given, config = read_allocation(config, make_space(config, make_spec(config)))
    folder, text = run_folder(config), RunText(config)
    setting = make_setting(config, (folder,), text)
    setting = dataclasses.replace(setting, given=given, sequences=text.show((folder,)))
    budget = checked_budget(setting, folder)
    return run_within(folder, setting, budget, make_executor(as_begun(config, (folder,)), folder))


def run_budgets(config: RunConfig) -> Result:
    """Make one run for every budget of ``config``, in subfolders of ``out`` named after the budgets.

    A run that fails does not keep the others from running; its status and reason are in the summary.

    Raises:
        BudgetError: If nothing fits some budget; all such budgets are reported before anything is trained.
        UserError: If the input or the environment can't work for any budget.
        RunInterrupted: On a signal that stops a run, after a clean journal.
    """
    out, data = run_folder(config), RunText(config)
    folders = [out / path_name(text) for text in config.budget]
    setting = make_setting(config, folders, data)
    settings = []
    for text, folder in zip(config.budget, folders, strict=True):
        resume = config.resume and (folder / JOURNAL_NAME).is_file()  # one that has not begun has nothing to resume
        of_budget = config.with_changes(budget=(text,), out=str(folder), resume=resume)
        settings.append(dataclasses.replace(setting, config=of_budget))
    budgets = _budgets(settings, folders)
    advised = [judged(one, budget) for one, budget in zip(settings, budgets, strict=True)]
    sequences = data.show(folders)
    entries: list[dict[str, Any]] = []
    results: list[Result] = []
    with closing(make_executor(as_begun(config, folders), out)) as executor:
        for (one, advice), folder, budget in zip(advised, folders, budgets, strict=True):
            siblings = [f for f in journals(out) if f != folder]
            shared = SharedExecutor(executor, folder, siblings, one.config.to_journal(), {*NOT_OF_THE_RESULT, "budget"})
            entry = {"budget": one.config.budget[0], "budget_bytes": budget, "folder": folder.name}
            try:
                done = run_within(folder, dataclasses.replace(one, sequences=sequences), budget, shared, advice)
                results.append(done)
                entry |= {"exit_status": done.exit_status, "message": "", **{key: done.best[key] for key in SUMMARISED},
                          **{key: done.best["memory"][key] for key in ("predicted_bytes", "measured_bytes")}}
            except OF_ALL:
                raise
            except RunInterrupted as stop:
                raise RunInterrupted(stop.signum, out) from stop
            except QRABOError as error:
                message = " ".join(str(error).split())
                print(f"qra_bo: budget {entry['budget']}: {message}", file=tolerant(sys.stderr))
                entry |= {"exit_status": error.exit_status, "message": message}
            entries.append(entry)
    summary = {"schema_version": 1, "model": config.model_name, "budgets": entries}
    with writing(out / SUMMARY_NAME, "run the same command again"):
        write_json(out / SUMMARY_NAME, summary)
    if config.display != "none":
        console = Console(file=tolerant(sys.stdout))
        print_table(console, ("budget", "bytes", "winner", "loss (nats a token)", "versus best uniform", "status"),
                    [(str(e["budget"]), size(e["budget_bytes"]), *_cells(e), str(e["exit_status"])) for e in entries])
        console.print(f"Summary: {out / SUMMARY_NAME}", markup=False, highlight=False, soft_wrap=True)
    return Result(out, summary, worst([entry["exit_status"] for entry in entries]), tuple(results))


def _budgets(settings: Sequence[Setting], folders: Sequence[Path]) -> list[int]:
    """Return the bytes of every budget.

    Raises:
        BudgetError: With every budget that nothing fits.
    """
    budgets, problems = [], []
    for setting, folder in zip(settings, folders, strict=True):
        try:
            budgets.append(checked_budget(setting, folder))
        except BudgetError as error:
            problems.append(f"budget {setting.config.budget[0]}: {error}")
    if problems:
        raise BudgetError("; ".join(problems))
    return budgets


def _cells(e: Mapping[str, Any]) -> tuple[str, str, str]:
    if e["message"]:
        return DASH, DASH, str(e["message"])
    v = e["versus_best_uniform"]
    if v is None:
        versus = "not confirmed" if e["searched"] else "not searched"
    else:
        versus = ITSELF if e["winner_kind"] == "uniform" else \
            f"{signed(v['mean'])} [{signed(v['low'])}, {signed(v['high'])}]"
    return f"{e['winner_kind']}, {e['average_bits']:.2f} bits, rank {e['average_rank']:.1f}", number(e["loss"]), versus


def make_setting(config: RunConfig, begun: Sequence[Path] = (), text: RunText | None = None) -> Setting:
    """Return space, memory model and given profile of a configuration.

    Runs in the folders ``begun`` go on with the compute type and the allocator's allowance that they began with. The
    run's ``text`` is checked before all else that takes long.

    Raises:
        DeviceError: If fine-tuning needs more RAM than is available, or a CUDA device that is not there.
        DataError: If the data is missing or malformed.
        UserError: If the model's shapes are not available, or the given profile lacks a measurement.
    """
    device = training_device(config)
    spec, path, trained = make_spec(config), config.sensitivity.path, as_begun(config, begun)
    space = make_space(config, spec)
    trains_here = config.oracle.trains and not config.executor.elsewhere
    if trains_here and (config.task != "profile" or path is None):  # a given profile needs no data
        (text or RunText(config)).check()
    if trains_here:
        check_ram(trained, spec, space, device)
    profile = None if path is None else given_profile(Path(path).expanduser(), space.units, config.format_names)
    return Setting(config, space, make_memory(trained, spec, device, allowance_for(config, device, begun)), profile)


def checked_budget(setting: Setting, folder: Path) -> int:
    """Return the bytes of the single budget; ``auto`` keeps its value from when the run in ``folder`` began.

    Raises:
        BudgetError: If the device can't meet it or has less, or nothing fits it, or not what was given.
        JournalError: If the run's journal can't be read.
    """
    config = setting.config
    if parse_budget(config.budget[0]).auto and (study := begun_study(folder)) is not None:
        budget = study.budget_bytes
    else:
        (budget,) = budgets_of(config, setting.memory, setting.space).values()
    if setting.given is None:
        check_card(config, setting.memory, budget)
        check_budget(budget, setting.costs(budget), setting.space, setting.memory)
        check_uniform(setting.rules(budget))
    else:
        check_given(setting, setting.given, budget)
    return budget


def run_within(folder: Path, setting: Setting, budget: int, executor: Executor,
               advice: Advice | None = None) -> Result:
    """Begin or continue one run within ``budget`` bytes, after the ``advice`` on these; closes ``executor``.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On a signal that stops a run, after a clean journal.
    """
    config, make = setting.config, searcher_factory(setting.config)
    if setting.given is None and config.effort.max_full_trials:
        # Built once before anything is measured, so that bad options or a profile without its needs end the run now.
        make(setting.problem(budget, setting.profile or rehearsal_profile(setting.space),
                             float(config.effort.max_full_trials)))
    try:
        with ExitStack() as stack:
            view, listeners = _listeners(config, folder, stack)
            if view is not None and begun_study(folder) is None:
                listeners.append(_announced(setting, budget, advice, view.console))
            engine = Engine(folder, setting, budget, executor, make, fine_tunes=config.oracle.trains,
                            listeners=listeners, progress=quiet if view is None else view.progress)
            outcome = engine.run()
        return _written(config, folder, outcome)
    except RunInterrupted as stop:
        raise RunInterrupted(stop.signum, folder) from stop


def _announced(setting: Setting, budget: int, advice: Advice | None, console: Console) -> Listener:
    """Print needs, advice, choices and plan of a run that begins; return the listener that corrects the plan's times.
    """
    if setting.given is None:
        spec, scope = setting.memory.spec, setting.config.memory.scope
        print_needs(console, f"{spec.name}: {(spec.linear_numel + spec.other_numel) / 1e6:,.1f} M parameters in "
                    f"{setting.space.n_units} units; the same bits everywhere, as a share of {size(budget)} ({scope} "
                    "memory):", budget, needs_of(setting, budget))
    if advice is not None:
        print_line(console, f"Verdict: {advice.sentence} {advice.offer}".rstrip())
    config, card = setting.config, card_of(setting)
    of_serving = serving_note(CONSUMERS[config.serve], setting.memory, setting.space)
    for note in filter(None, (of_serving, *preset_notes(config))):
        print_line(console, note)
    rows = plan_rows(setting, card)
    print_plan(console, f"{config.model_name} within {size(budget)}, effort={config.effort.name}; "
               f"{basis(setting, card)}", rows, setting.full_trial_tokens)
    return FirstTrial(rows, console)


def searcher_factory(config: RunConfig) -> MakeSearcher:
    """Return what builds the configured searcher for a problem."""
    return functools.partial(make_searcher, config.method.target)


def _listeners(config: RunConfig, folder: Path, stack: ExitStack) -> tuple[LiveView | None, list[Listener]]:
    """Return the live view, if any, and all listeners to the run's events; ``stack`` closes them."""
    tracker = make_listener(config.logger.target, folder)
    if tracker is not None:
        stack.callback(tracker.close)
    view = stack.enter_context(live_view(config)) if config.display != "none" else None
    listeners: list[Listener] = [listener for listener in (view, tracker) if listener is not None]
    if config.oracle.trains:  # else there is no final fine-tune to wait for
        listeners.append(functools.partial(_report_early, folder, datetime.now().astimezone()))
    return view, listeners


def _report_early(folder: Path, since: datetime, event: Event) -> None:
    """Write the report of a run in ``folder`` after a comparison: the final fine-tune may take hours.

    Events before ``since`` are those of earlier sessions.
    """
    if event["event"] == "stage" and event["state"] == "end" and event["stage"] in COMPARING \
            and datetime.fromisoformat(event["time"]) >= since:
        write_report(folder)


def live_view(config: RunConfig) -> LiveView:
    """Return the view of progress: a panel on a terminal, lines elsewhere and with ``display=plain``."""
    return LiveView(Console(file=tolerant(sys.stderr), force_terminal=False) if config.display == "plain" else None)


@contextmanager
def oracle_session(config: RunConfig) -> Iterator[tuple[Executor, Progress]]:
    """Give an executor and the view's progress to a task that is no run: its checkpoints last as long as it does."""
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as folder, ExitStack() as stack:
        executor = make_executor(config, Path(folder))
        stack.callback(executor.close)
        view = None if config.display == "none" else stack.enter_context(live_view(config))
        yield executor, quiet if view is None else view.progress


def _written(config: RunConfig, folder: Path, outcome: RunOutcome) -> Result:
    """Write report and exports of a finished run, and its answer on the terminal."""
    console = None if config.display == "none" else Console(file=tolerant(sys.stdout))
    files = write_report(folder)
    if (folder / "adapter").is_dir():
        files += write_exports(config, folder, console)
    if console is not None:
        parts = [path.relative_to(folder).parts for path in (folder / "best.json", *files)]
        shown = dict.fromkeys(p[0] + "/" * (len(p) > 1) for p in parts)
        print_result(console, load_run(folder), folder, list(shown))
    return Result(folder, outcome.best, outcome.exit_status)
