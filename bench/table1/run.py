"""One table from its first search to its files, made or resumed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.table1.cells import Cell, CellResult, equivalents, make_cells, work
from bench.table1.config import NAME, TableConfig
from bench.table1.join import join
from bench.table1.limits import Limit
from bench.table1.markdown import render, summary
from bench.table1.results import build
from bench.table1.search import check_method
from bench.table1.session import Session, open_session
from qra_bo.config import RunConfig
from qra_bo.memory.budget import format_size
from qra_bo.pipeline.folders import new_folder
from qra_bo.study.signals import Interrupts
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder, write_json, writing

AGAIN = "run the same command again"


@dataclass(frozen=True)
class TableResult:
    """A finished table: its folder, and the contents of ``table1.json``."""

    folder: Path
    table: dict[str, Any]


def run_table(config: TableConfig) -> TableResult:
    """Make the table, or resume the one in ``out``.

    The tables are written after every row.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On a signal, after a clean journal.
    """
    run = config.run
    cells = [cell for cell in make_cells(config.table.limits, config.table.methods) if cell.row.differs(run)]
    folder = table_folder(run)
    shown = run.display != "none"
    with Interrupts(), open_session(config, folder) as session:
        for other in config.table.join:
            taken = join(session, Path(other))
            if shown:
                print(f"{other}: {taken} results taken over", file=sys.stderr)
        check_method(session)
        if config.table.tasks and run.oracle.name == "finetune":
            from qra_bo.finetune.evaluation import check_tasks  # loads torch and the harness

            check_tasks(config.table.tasks)
        if shown:
            _announce(session, cells)
        table = _work(session, cells, shown)
    if shown:
        print("\n".join([*summary(table), f"Files: {folder / 'table1.md'}, table1.json"]))
    return TableResult(folder, table)


def table_folder(config: RunConfig) -> Path:
    """Return ``out``, or a new folder below ``outputs``.

    Raises:
        OutputError: If it holds something that is not a table, or links.
    """
    if config.out is None:
        return new_folder(config, "table1")
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={folder} is a file; give a folder that is new, empty or holds a table")
    begun = (folder / NAME).exists()
    if folder.is_dir() and any(folder.iterdir()) and not begun:
        raise OutputError(f"out={folder} holds files and no {NAME}: it is not the folder of a table, and nothing in it "
                          "is touched; give a folder that is new, empty or holds a table")
    if config.resume and not begun:
        raise OutputError(f"resume=true and out={folder} holds no {NAME}, so there is nothing to resume; give the "
                          "folder of a table, or leave resume out")
    check_run_folder(folder)
    return folder


def _announce(session: Session, cells: Sequence[Cell]) -> None:
    """Print the planned work, and the bytes of the limits."""
    c = session.config
    print(f"table1={session.options.name} for {c.model_name}, effort={c.effort.name}: {len(cells)} rows, at most "
          f"{equivalents(session, cells):.0f} full-fidelity trials ({c.fidelity.high} steps each)", file=sys.stderr)
    limits: dict[str, Limit] = {cell.limit.name: cell.limit for cell in cells if cell.limit.budget is not None}
    for limit in limits.values():
        bits = "" if limit.max_average_bits is None else f", at most {limit.max_average_bits:g} bits on average"
        print(f"  {limit.name}: {format_size(session.budget_bytes(limit))} of {limit.scope} memory{bits}",
              file=sys.stderr)


def _work(session: Session, cells: Sequence[Cell], shown: bool) -> dict[str, Any]:
    """Work cell by cell; the table is written after each."""
    results: list[CellResult] = []
    table: dict[str, Any] = {}

    for number, cell in enumerate(cells, start=1):
        def say(text: str, number: int = number) -> None:
            if shown:
                print(f"[{number}/{len(cells)}] {text}", file=sys.stderr, flush=True)

        say(cell.name)
        results.append(work(session, cell, say))
        if results[-1].why:
            say(f"no result, {results[-1].why}")
        table = build(session, cells, results)
        write(session.folder, table)
    return table


def write(folder: Path, table: dict[str, Any]) -> None:
    """Write ``table1.json`` and ``table1.md``.

    Raises:
        OutputError: If they can't be written.
    """
    with writing(folder, AGAIN):
        write_json(folder / "table1.json", table)
        (folder / "table1.md").write_text(render(table), encoding="utf-8")
