"""Scale of the driver in simulated time: a thousand workers and a hundred thousand trials.

    python -m bench.scale [--quick]

The engine, the journal and the search methods are the real ones; trials are those of ``oracle=synthetic`` on the shapes
of Llama-2-7B, and end in the order in which workers would finish them. Journals are in memory (tmpfs), so that the file
system does not count. Times are CPU seconds of one thread. Rows are printed when measured.
"""

import argparse
import heapq
import itertools
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.engine import evaluated
from bench.report import RESULTS, Target, publish
from qra_bo.config import RunConfig, load_config
from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Oracle, Progress, quiet
from qra_bo.oracle.synthetic import Landscape, SyntheticOracle
from qra_bo.pipeline.prepare import make_setting
from qra_bo.pipeline.run import searcher_factory
from qra_bo.searchers.base import SearchProblem, make_searcher
from qra_bo.searchers.evolution.variation import random_near_budget
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.space import Allocation, uniform
from qra_bo.study.engine import Engine
from qra_bo.study.events import Event
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.setting import Setting
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec

OVERRIDES = ("+model=llama2_7b", "budget=7GB", "oracle=synthetic", "device=cuda", "display=none",
             "effort.uniform_baselines=1", "calibrate.lr_scales=[1.0]", "confirm.seeds=0", )
MINUTES, SPREAD = 20.0, 0.25
"""Median of a high-fidelity evaluation and its spread (log-normal)."""
STRAGGLERS, SLOWER = 0.01, 8.0
"""Share of evaluations that take so many times as long: a busy node, or one that was lost and begun again."""
SEARCH = "a whole search, method=random"
WHOLE = 100_000
ENDS = (1000, 3000, 10_000, 30_000)
EQUIVALENTS = 1.28
"""Cost of an evaluation here: the planted oracle looks at held-out text eight times where a real one does once."""
METHOD = "structured"
COUNTS = (100, 300, 1000, 3000, 10_000, 30_000)
ROUNDS = 5
BUDGET = 7 * 10**9
"""Where uniform 8 bits do not fit: else the search soon has nothing left to propose."""
RESUME = "resumed: its journal replayed, and a batch more"
COLUMNS = ("what", "workers", "pending", "evaluations", "cpu_seconds", "evaluations_per_second", "ms_each_lately",
           "proposal_ms", "longest_ms", "journal_bytes", "memory_bytes", "utilisation")
Row = dict[str, Any]


class SimulatedWorkers(InProcessExecutor):
    """Workers that take realistic times in a clock of their own.

    Args:
        oracle: Answers at once.
        workers: How many there are.
        seed: Of the durations.
    """

    def __init__(self, oracle: Oracle, workers: int, seed: int) -> None:
        super().__init__(oracle)
        self.workers = workers
        self._rng, self._number = np.random.default_rng(seed), 0
        self._ends: list[tuple[float, int, TrialSpec]] = []
        self.minutes = self.busy_minutes = self.idle_minutes = 0.0
        self.begun = self.last = 0.0, 0.0  # minutes, and idle ones until then: when all first had work, and last

    @property
    def share_while_asked(self) -> float:
        """Share of the time that workers are busy, from when all have work to when the last trial is handed out."""
        minutes, idle = (last - begun for begun, last in zip(self.begun, self.last, strict=True))
        return 1.0 - idle / max(1e-9, self.workers * minutes)

    def submit(self, request: TrialSpec) -> None:
        took = MINUTES * request.steps / request.schedule_steps * float(self._rng.lognormal(0.0, SPREAD))
        took *= SLOWER if self._rng.random() < STRAGGLERS else 1.0
        self._number += 1
        self.busy_minutes += took
        heapq.heappush(self._ends, (self.minutes + took, self._number, request))
        if len(self._ends) == self.workers:
            self.last = self.minutes, self.idle_minutes
            self.begun = self.begun if any(self.begun) else self.last

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        pending, before = len(self._ends), self.minutes
        self.minutes, _, request = heapq.heappop(self._ends)
        self.idle_minutes += (self.workers - pending) * (self.minutes - before)
        super().submit(request)
        return super().finished(progress)


def memory_disk() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def told(rows: list[Row], row: Row) -> None:
    """Keep a row and print it."""
    rows.append(row)
    print("; ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def problem_of(method: str, equivalents: float) -> tuple[RunConfig, Setting, SyntheticOracle]:
    """What a run of so many full-trial equivalents is made of."""
    config = load_config([*OVERRIDES, f"method={method}", f"effort.max_full_trials={round(equivalents)}"])
    setting = make_setting(config)
    return config, setting, SyntheticOracle(
        setting.space, config.seed, learning_rate=config.adapter.lr, high_steps=config.fidelity.high,
        tokens_per_step=config.train.step_tokens, eval_tokens=config.eval.sequences * config.train.length,
        calibration_tokens=config.eval.sequences * config.train.length)


def session(folder: Path, workers: int, evaluations: int, what: str, ends: Sequence[int], rows: list[Row]) -> None:
    """Search, or go on, until about so many evaluations are spent; a row at each of ``ends`` and at the end.

    Args:
        folder: Of the run.
        workers: Simulated ones.
        evaluations: Trials in all sessions of the folder.
        what: Names the rows.
        ends: Numbers of evaluations.
        rows: Grows.
    """
    config, setting, oracle = problem_of("random", EQUIVALENTS * evaluations)
    simulated, journal = SimulatedWorkers(oracle, workers, seed=0), folder / JOURNAL_NAME
    count, last, begin = 0, (0, time.process_time()), time.process_time()

    def note() -> None:
        nonlocal last
        now = time.process_time()
        since, last = (count - last[0], now - last[1]), (count, now)
        told(rows, {
            "what": what, "workers": workers, "evaluations": count, "cpu_seconds": now - begin,
            "evaluations_per_second": count / (now - begin), "ms_each_lately": 1e3 * since[1] / max(1, since[0]),
            "journal_bytes": journal.stat().st_size,
            "memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "simulated_hours": simulated.minutes / 60,
            "utilisation": simulated.busy_minutes / max(1e-9, workers * simulated.minutes),
            "utilisation_while_asked": simulated.share_while_asked})

    def listen(event: Event) -> None:
        nonlocal count
        count += event.kind == "trial"
        if event.kind == "trial" and count in ends:
            note()

    setting = replace(setting, config=config.with_changes(fidelity=config.fidelity.with_changes(low=None)))
    Engine(folder, setting, BUDGET, simulated, searcher_factory(config), fine_tunes=False, listeners=(listen,)).run()
    note()


def proposals(counts: Sequence[int], pending: int, rows: list[Row]) -> None:
    """CPU seconds of the default method's next proposals with so many random ones pending, by how many evaluations it
    was told of: of each proposal one that was pending ends, and another is asked for."""
    config, setting, oracle = problem_of(METHOD, 1e6)
    problem = SearchProblem(setting.space, setting.costs(BUDGET), BUDGET, oracle.profile(quiet), config.fidelity.high,
                            None, config.seed, step_tokens=config.train.step_tokens)
    searcher = make_searcher(config.method.target, problem)
    truth, rng = Landscape(problem.space, 0), problem.rng("told")
    numbers = itertools.count(1)

    def ended(allocation: Allocation, stage: str) -> Trial:
        return evaluated(problem, truth, rng, allocation, next(numbers), stage)

    searcher.tell([ended(uniform(problem.space.n_units, f.name, 1), "baseline") for f in problem.space.formats[:2]])
    assert isinstance(searcher, StructuredSearch)
    under_way = [Proposal(searcher._seen.propose(random_near_budget(problem, rng)), Fidelity.HIGH, "other")
                 for _ in range(pending)]
    n = 0
    for count in counts:
        more = [ended(problem.space.decode(random_near_budget(problem, rng)), "other") for _ in range(count - n)]
        begin = time.process_time()
        searcher.tell(more)
        told_seconds, n, seconds = time.process_time() - begin, count, []
        for _ in range(ROUNDS):
            first = under_way.pop(0)
            searcher.tell([ended(first.allocation, first.stage)])
            begin = time.process_time()
            under_way += searcher.ask(1)
            seconds.append(time.process_time() - begin)
        told(rows, {"what": f"proposal, method={METHOD}", "evaluations": count, "pending": pending,
                    "told_seconds": told_seconds, "proposal_ms": 1e3 * float(np.median(seconds)),
                    "longest_ms": 1e3 * max(seconds)})


def targets_of(rows: Sequence[Row], workers: int, evaluations: int) -> list[Target]:
    """What workers of ``MINUTES`` an evaluation ask of the driver in a search of so many evaluations."""
    needed = workers / (60 * MINUTES)
    done = [r for r in rows if r["what"] == SEARCH]
    last = max(done, key=lambda r: r["evaluations"])
    targets = [
        Target("evaluations of the longest search", f">= {evaluations:,}", last["evaluations"],
               last["evaluations"] >= evaluations),
        Target(f"evaluations a CPU second of the driver, {last['evaluations']:,} on {last['workers']:,} workers",
               f">= {needed:.2f}, what such workers finish", last["evaluations_per_second"],
               last["evaluations_per_second"] >= needed),
        Target("share of the time that workers are busy, from when all have work to the last trial that is handed out",
               ">= 0.99", last["utilisation_while_asked"], last["utilisation_while_asked"] >= 0.99)]
    told = [r for r in rows if r["what"].startswith("proposal")]
    most = max((r["evaluations"] for r in told if r["proposal_ms"] <= 1e3 / needed), default=0)
    wanted = min(1000, max(r["evaluations"] for r in told))
    return [*targets, Target(f"evaluations up to which method={METHOD} proposes as fast as {workers:,} workers finish",
                             f">= {wanted:,}", most, most >= wanted)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 workers, 1,000 evaluations, and nothing is kept")
    quick = parser.parse_args(arguments).quick
    evaluations, workers, counts = (1000, 50, (100, 300)) if quick else (WHOLE, 1000, COUNTS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=memory_disk()) as folder:
        tenth = evaluations // 10
        session(Path(folder) / "tenth", workers, tenth, SEARCH, [], rows)
        session(Path(folder) / "tenth", workers, tenth + workers, RESUME, [], rows)
        session(Path(folder) / "whole", workers, evaluations, SEARCH, [n for n in ENDS if n < evaluations], rows)
        proposals(counts, workers, rows)
        publish("scale", targets_of(rows, workers, evaluations), rows, COLUMNS, threads=1,
                folder=Path(folder) if quick else RESULTS)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
