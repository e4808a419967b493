"""Several budgets in one go: a run each, one oracle for all, and no trial evaluated twice."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import NOT_OF_THE_RESULT, RunConfig
from qra_bo.pipeline.build import make_executor
from qra_bo.pipeline.folders import SUMMARY_NAME, journals, path_name, run_folder
from qra_bo.pipeline.run import Result, checked_budget, make_setting, run_within
from qra_bo.report.tables import print_table
from qra_bo.report.text import DASH, number, signed, size
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.setting import Setting
from qra_bo.study.shared import SharedExecutor
from qra_bo.utils import errors
from qra_bo.utils.errors import BudgetError, QRABOError, worst
from qra_bo.utils.files import write_json, writing

OF_ALL = (errors.ConfigError, errors.ModelError, errors.DataError, errors.DeviceError, errors.MissingExtraError)
"""Errors that every further budget would meet too."""


def run_budgets(config: RunConfig) -> Result:
    """Make one run for every budget of ``config``, in subfolders of ``out`` named after the budgets.

    A run that fails does not keep the others from running; its status and reason are in the summary.

    Raises:
        BudgetError: If nothing fits some budget; all such budgets are reported before anything is trained.
        UserError: If the input or the environment can't work for any budget.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    out = run_folder(config)
    folders = [out / path_name(text) for text in config.budget]
    setting = make_setting(config, folders)
    settings = []
    for text, folder in zip(config.budget, folders, strict=True):
        resume = config.resume and (folder / JOURNAL_NAME).is_file()  # one that has not begun has nothing to resume
        of_budget = config.with_changes(budget=(text,), out=str(folder), resume=resume)
        settings.append(dataclasses.replace(setting, config=of_budget))
    budgets = _budgets(settings, folders)
    executor = make_executor(config, out)
    entries: list[dict[str, Any]] = []
    results: list[Result] = []
    try:
        for one, folder, budget in zip(settings, folders, budgets, strict=True):
            siblings = [f for f in journals(out) if f != folder]
            shared = SharedExecutor(executor, folder, siblings, one.config.to_dict(), {*NOT_OF_THE_RESULT, "budget"})
            entry = {"budget": one.config.budget[0], "budget_bytes": budget, "folder": folder.name}
            try:
                results.append(run_within(folder, one, budget, shared))
                entry |= _summary(results[-1])
            except OF_ALL:
                raise
            except QRABOError as error:
                message = " ".join(str(error).split())
                print(f"qra_bo: budget {entry['budget']}: {message}", file=sys.stderr)
                entry |= {"exit_status": error.exit_status, "message": message}
            entries.append(entry)
    finally:
        executor.close()
    summary = {"schema_version": 1, "model": config.model_name, "budgets": entries}
    with writing(out / SUMMARY_NAME, "run the same command again"):
        write_json(out / SUMMARY_NAME, summary)
    if config.display != "none":
        console = Console()
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


def _summary(result: Result) -> dict[str, Any]:
    """Return the fields of ``budgets.json`` for a run that ended well."""
    best = result.best
    copied = ("winner_kind", "average_bits", "average_rank", "loss", "loss_se", "metric", "search_loss",
              "versus_best_uniform", "oracle")
    return {"exit_status": result.exit_status, "message": "", **{key: best[key] for key in copied},
            **{key: best["memory"][key] for key in ("predicted_bytes", "measured_bytes")}}


def _cells(e: Mapping[str, Any]) -> tuple[str, str, str]:
    if e["message"]:
        return DASH, DASH, str(e["message"])
    v = e["versus_best_uniform"]
    versus = "not confirmed" if v is None else f"{signed(v['mean'])} [{signed(v['low'])}, {signed(v['high'])}]"
    return f"{e['winner_kind']}, {e['average_bits']:.2f} bits, rank {e['average_rank']:.1f}", number(e["loss"]), versus
