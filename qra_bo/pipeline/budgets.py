"""Several budgets in one go: a run each, one oracle for all, and nothing evaluated twice."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qra_bo.cli.sweep import worst
from qra_bo.config import NOT_OF_THE_RESULT, RunConfig
from qra_bo.execution.base import Executor
from qra_bo.memory.budget import check_budget
from qra_bo.pipeline.executors import make_executor
from qra_bo.pipeline.run import Result, Setting, budget_bytes, make_setting, new_folder, path_name, run_one
from qra_bo.report.text import DASH, number, signed, size
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.shared import SharedExecutor
from qra_bo.utils.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DeviceError,
    MissingExtraError,
    ModelError,
    OutputError,
    QRABOError,
)
from qra_bo.utils.files import check_run_folder, write_json

SUMMARY_NAME = "budgets.json"
CHECKPOINTS = "checkpoints"
OF_ALL = (ConfigError, ModelError, DataError, DeviceError, MissingExtraError)
"""Errors that every further budget would meet too."""


def search_budgets(config: RunConfig) -> Result:
    """One run for every budget of ``config``, in subfolders of ``out`` named after the budgets.

    A run that fails does not keep the others from running; its status and reason are in the summary.

    Raises:
        BudgetError: If nothing fits some budget; it is said of all of them before anything is trained.
        UserError: If the input or the environment can't work for any budget.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    out = runs_folder(config)
    setting = make_setting(config, [out / path_name(text) for text in config.budget])
    subfolders = {text: out / path_name(text) for text in config.budget}
    configs = [_of_budget(config, text, folder) for text, folder in subfolders.items()]
    budgets = _budgets(configs, setting, list(subfolders.values()))
    executor = make_executor(config.with_changes(out=str(out)), out, setting.profile)
    entries: list[dict[str, Any]] = []
    results: list[Result] = []
    try:
        for one, budget in zip(configs, budgets, strict=True):
            entry, result = _run(one, setting, budget, executor, [f for f in _journals(out) if str(f) != one.out])
            entries.append(entry)
            results += [] if result is None else [result]
    finally:
        executor.close()
    summary = {"schema_version": 1, "model": config.model_name, "budgets": entries}
    _write(out / SUMMARY_NAME, summary)
    if config.display != "none":
        print_budgets(Console(), out, entries)
    return Result(out, summary, worst([entry["exit_status"] for entry in entries]), tuple(results))


def runs_folder(config: RunConfig) -> Path:
    """The folder that holds the runs of all budgets.

    Raises:
        OutputError: If it holds anything else, or nothing where a run is to be resumed.
    """
    if config.out is None:
        return new_folder(config, "budgets")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"out={out} is a file; give a folder that is new, empty or holds runs of several budgets")
    check_run_folder(out)
    entries = sorted(out.iterdir()) if out.is_dir() else []
    known = {SUMMARY_NAME, CHECKPOINTS, *map(path_name, config.budget)}
    foreign = [p.name for p in entries if p.name not in known and not (p / JOURNAL_NAME).is_file()]
    if (out / JOURNAL_NAME).is_file():
        raise OutputError(f"out={out} is the folder of one run, and several budgets need a folder that is new, empty "
                          "or holds runs of several budgets")
    if foreign:
        raise OutputError(f"out={out} holds {foreign[0]!r}, which is no run of a budget, and nothing in it is touched; "
                          "several budgets need a folder that is new, empty or holds runs of several budgets")
    if config.resume and not _journals(out):
        raise OutputError(f"resume=true and out={out} holds no run of any budget, so there is nothing to go on from; "
                          "give the folder of such runs, or leave resume out")
    return out


def summary_entry(config: RunConfig, budget: int, result: Result) -> dict[str, Any]:
    """What ``budgets.json`` says of a run that ended well."""
    best = result.best
    n = len(best["ranks"])
    return {"budget": config.budget[0], "budget_bytes": budget, "folder": result.folder.name,
            "exit_status": result.exit_status, "message": "", "winner_kind": best["winner_kind"],
            "average_bits": best["average_bits"], "average_rank": sum(best["ranks"]) / n, "loss": best["loss"],
            "loss_se": best["loss_se"], "metric": best["metric"], "search_loss": best["search_loss"],
            "versus_best_uniform": best["versus_best_uniform"], "oracle": best["oracle"],
            "predicted_bytes": best["memory"]["predicted_bytes"], "measured_bytes": best["memory"]["measured_bytes"]}


def print_budgets(console: Console, out: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """The summary: a table on a terminal, plain lines elsewhere."""
    columns = ("budget", "bytes", "winner", "loss", "versus best uniform", "status")
    rows = [(str(e["budget"]), size(e["budget_bytes"]), *_cells(e), str(e["exit_status"])) for e in entries]
    if not console.is_terminal:
        for row in rows:
            console.print("  " + ", ".join(f"{k} {v}" for k, v in zip(columns, row, strict=True)), markup=False,
                          highlight=False, soft_wrap=True)
    else:
        table = Table(title="Budgets (loss in nats per token, lower is better)", title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(f"Summary: {out / SUMMARY_NAME}", markup=False, highlight=False, soft_wrap=True)


def _cells(e: Mapping[str, Any]) -> tuple[str, str, str]:
    if e["message"]:
        return DASH, DASH, str(e["message"])
    v = e["versus_best_uniform"]
    versus = "not confirmed" if v is None else f"{signed(v['mean'])} [{signed(v['low'])}, {signed(v['high'])}]"
    return f"{e['winner_kind']}, {e['average_bits']:.2f} bits, rank {e['average_rank']:.1f}", number(e["loss"]), versus


def _of_budget(config: RunConfig, text: str, folder: Path) -> RunConfig:
    """The configuration of one budget's run; one that has not begun has nothing to resume."""
    resume = config.resume and (folder / JOURNAL_NAME).is_file()
    return config.with_changes(budget=(text,), out=str(folder), resume=resume)


def _budgets(configs: Sequence[RunConfig], setting: Setting, folders: Sequence[Path]) -> list[int]:
    """Bytes of every budget.

    Raises:
        BudgetError: With every budget that nothing fits.
    """
    budgets, problems = [], []
    for config, folder in zip(configs, folders, strict=True):
        try:
            budgets.append(budget_bytes(config, setting, folder))
            check_budget(budgets[-1], setting.costs(budgets[-1]), setting.space, setting.memory)
        except BudgetError as error:
            problems.append(f"budget {config.budget[0]}: {error}")
    if problems:
        raise BudgetError("; ".join(problems))
    return budgets


def _run(config: RunConfig, setting: Setting, budget: int, executor: Executor,
         siblings: Sequence[Path]) -> tuple[dict[str, Any], Result | None]:
    """One budget's run: its entry in the summary, and its result unless it failed."""
    folder = Path(str(config.out))
    shared = SharedExecutor(executor, folder, siblings, config.to_dict(), frozenset({*NOT_OF_THE_RESULT, "budget"}))
    try:
        result = run_one(config, folder, setting, budget, shared)
    except OF_ALL:
        raise
    except QRABOError as error:
        message = " ".join(str(error).split())
        print(f"qra_bo: budget {config.budget[0]}: {message}", file=sys.stderr)
        return {"budget": config.budget[0], "budget_bytes": budget, "folder": folder.name,
                "exit_status": error.exit_status, "message": message}, None
    return summary_entry(config, budget, result), result


def _journals(out: Path) -> list[Path]:
    """Subfolders that hold a run."""
    return sorted(path.parent for path in out.glob(f"*/{JOURNAL_NAME}"))


def _write(path: Path, summary: Mapping[str, Any]) -> None:
    try:
        write_json(path, summary)
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}); mend that and run the same command again"
                          ) from error
