"""Add real fine-tuning trials to a table; a stopped collection resumes.

    python -m bench.collect --task plays
    python -m bench.collect --task gsm8k --data FILE.jsonl --hours 2

Rows that the table holds are not made again, and each is on disk before the next begins, so that this may be killed and
run again at any time. Several machines may each add rows to a copy (with other values of --seed); the copies are joined
by appending lines, which git does by itself.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.collect.plan import Plan, PlannedTrial
from bench.collect.task import DATA, RECORD_AT, TASKS, Setting, begin, load_setting, task_config
from bench.collect.writing import append_provenance, append_rows
from bench.emulator.table import (
    PROVENANCE,
    ROWS,
    TableRow,
    load_rows,
)
from bench.report import machine
from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.pipeline.executors import limits, prepare_worker_environment
from qra_bo.study.journal import RunLock, checksum
from qra_bo.study.provenance import collect
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import UserError


class Collection:
    """One session on one table.

    Args:
        folder: Of the table.
        setting: What its files come to.
        executor: Runs the oracle.
        provenance: Of this session.
    """

    def __init__(self, folder: Path, setting: Setting, executor: Executor, provenance: dict[str, Any]) -> None:
        self.folder, self.setting, self._executor = folder, setting, executor
        self._provenance, self._batch = provenance, f"session-{checksum(provenance)}"
        self._noted = False

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """All rows on disk."""
        return load_rows(self.folder / ROWS, self.setting.facts)

    def add(self, wanted: PlannedTrial) -> TableRow:
        """Evaluate and write down one row."""
        steps = self.setting.facts.steps
        request = TrialSpec(wanted.allocation, steps, steps, wanted.train_seed,
                            self.setting.facts.learning_rate * wanted.lr_scale)
        row = self._row(wanted, self._executor.evaluate(request, lambda what, done, total: None))
        if not self._noted:
            append_provenance(self.folder / PROVENANCE, self._batch, self._provenance)
            self._noted = True
        append_rows(self.folder / ROWS, self.setting.facts, [row])
        return row

    def _row(self, wanted: PlannedTrial, m: TrialResult) -> TableRow:
        curve = dict(m.curve)
        early = tuple(curve.get(step) for step in self.setting.facts.record_at)
        return TableRow(wanted.allocation, wanted.origin, wanted.train_seed, wanted.lr_scale, m.state, m.loss,
                        m.loss_se, early, self.setting.bytes_of(wanted.allocation), m.seconds, self._batch)


def work(collection: Collection, plan: Plan, most: int | None, hours: float | None) -> None:
    """Evaluate what the plan wants until it wants nothing, or enough was done."""
    start, done = time.monotonic(), 0
    while (most is None or done < most) and (hours is None or time.monotonic() - start < 3600 * hours):
        rows = collection.rows
        wanted = plan.next(rows)
        if wanted is None:
            print(f"the table is whole: {len(rows)} rows")
            return
        row, done = collection.add(wanted), done + 1
        loss = row.state.value if row.loss is None else f"loss {row.loss:.4f}"
        print(f"{datetime.now():%H:%M:%S} {len(rows) + 1} of about {plan.total}: {row.origin}: {describe(row)}: "
              f"{loss}, {row.seconds:.0f} s", flush=True)
        if row.state is TrialState.FAILED:
            print("an evaluation was lost with its worker; it is kept as failed and not made again", flush=True)


def describe(row: TableRow) -> str:
    """Formats and ranks in a few words."""
    formats = [f"{row.allocation.formats.count(f)} {f}" for f in dict.fromkeys(row.allocation.formats)]
    ranks = row.allocation.ranks
    return f"{', '.join(formats)}, mean rank {sum(ranks) / len(ranks):.1f}, learning rate x {row.lr_scale:g}"


def session(options: argparse.Namespace, config: RunConfig, folder: Path, executor: Executor) -> None:
    """Everything that one command does."""
    described = executor.describe()
    begin(folder, options.task, config, described, executor)
    setting = load_setting(folder, config)
    provenance = {"begun": datetime.now().astimezone().isoformat(timespec="seconds"),
                  "machine": {k: v for k, v in machine().items() if k not in ("packages", "threads")},
                  **collect(described)}
    collection = Collection(folder, setting, executor, provenance)
    plan = Plan(setting.facts, setting.problems, setting.rules, options.seed)
    work(collection, plan, options.evaluations, options.hours)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.collect", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), required=True, help="the table to add to")
    parser.add_argument("--data", help="JSONL file with the records of the task gsm8k")
    parser.add_argument("--table", type=Path, help="folder of the table; bench/data/TASK by default")
    parser.add_argument("--evaluations", type=int, help="at most so many new ones")
    parser.add_argument("--hours", type=float, help="begin none after so long")
    parser.add_argument("--seed", type=int, default=0, help="another seed plans other allocations")
    parser.add_argument("--device", default="cpu", help="cpu | cuda | auto")
    options = parser.parse_args(arguments)
    folder = options.table or DATA / options.task
    try:
        config = task_config(options.task, options.data, options.device)
        folder.mkdir(parents=True, exist_ok=True)
        prepare_worker_environment()
        with Interrupts(), RunLock(folder), tempfile.TemporaryDirectory(prefix="qra_bo-") as scratch:
            spec = OracleSpec("bench.collect.worker:make_oracle",
                              {"config": config.to_dict(), "out": scratch, "record_at": list(RECORD_AT)})
            executor = LocalExecutor([spec], limits(config))
            try:
                session(options, config, folder, executor)
            finally:
                executor.close()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except RunInterrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
