"""A thousand workers and a hundred thousand evaluations in simulated time: what the driver takes, and what gives way.

    python -m bench.scale [--evaluations 100000] [--workers 1000] [--quick]

The engine, the journal and the search methods are the real ones; evaluations are those of ``oracle=synthetic`` on the
shapes of Llama-2-7B, and their ends come in the order in which workers would finish them. Journals lie on a disk in
memory: what a file system adds is no property of the program.
"""

import argparse
import heapq
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.engine import evaluated, observations
from bench.report import Target, publish
from qra_bo.build import BytesPredictor
from qra_bo.config import load_config
from qra_bo.methods import make_searcher
from qra_bo.oracle.landscape import Landscape
from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.records import Evaluation, EvaluationRequest, Measurement, Proposal
from qra_bo.run import engine_settings, make_setting
from qra_bo.searcher import Searcher, SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.study.engine import Engine
from qra_bo.study.executor import InProcessExecutor
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.options import Parts

OVERRIDES = ("+model=llama2_7b", "budget=10GB", "oracle=synthetic", "device=cuda", "display=none", "effort.anchors=1",
             "calibrate.lr_scales=[1.0]", "confirm.seeds=0", "effort.ranking_top=0")
MINUTES, SPREAD = 20.0, 0.25
"""Median of a high-fidelity evaluation and its spread (log-normal)."""
STRAGGLERS, SLOWER = 0.01, 8.0
"""Share of evaluations that take so many times as long: a busy node, or one that was lost and begun again."""
SEARCH = "a whole search, method=random"
ENDS = (1000, 3000, 10_000, 30_000, 100_000)
EQUIVALENTS = 2.28
"""Cost of an evaluation here: the planted oracle looks at held-out text eight times where a real one does once."""
METHODS = ("structured", "evolution", "trust_region")
COUNTS = (100, 300, 1000, 3000, 10_000)
PROPOSALS = 45
ENOUGH_SECONDS = 6.0
"""A proposal that takes longer ends the measurements of a method."""
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
        self._workers = workers
        self._rng, self._number = np.random.default_rng(seed), 0
        self._ends: list[tuple[float, int, EvaluationRequest]] = []
        self.minutes = self.busy_minutes = 0.0

    @property
    def workers(self) -> int:
        return self._workers

    def submit(self, request: EvaluationRequest) -> None:
        took = MINUTES * request.steps / request.schedule_steps * float(self._rng.lognormal(0.0, SPREAD))
        took *= SLOWER if self._rng.random() < STRAGGLERS else 1.0
        self._number += 1
        self.busy_minutes += took
        heapq.heappush(self._ends, (self.minutes + took, self._number, request))

    def finished(self, progress: Progress) -> tuple[EvaluationRequest, Measurement]:
        self.minutes, _, request = heapq.heappop(self._ends)
        super().submit(request)
        return super().finished(progress)


class Timed:
    """A searcher whose proposals are timed."""

    def __init__(self, inner: Searcher) -> None:
        self._inner, self.seconds = inner, [0.0]

    @property
    def name(self) -> str:
        return self._inner.name

    def ask(self, n: int) -> list[Proposal]:
        begin = time.process_time()
        proposals = self._inner.ask(n)
        self.seconds.append(time.process_time() - begin)
        return proposals

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        self._inner.tell(evaluations)


def memory_disk() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Drive:
    """One search and what it takes, a row at every power of about three.

    Args:
        folder: Of the run; made.
        workers: Simulated ones.
        method: Of search.
    """

    def __init__(self, folder: Path, workers: int, method: str = "random") -> None:
        self.folder, self.workers, self.method = folder, workers, method
        self.rows: list[Row] = []
        self.problem: SearchProblem | None = None

    def session(self, evaluations: int, what: str, ends: Sequence[int] = ()) -> None:
        """Search, or go on, until so many evaluations are spent."""
        config = load_config([*OVERRIDES, f"method={self.method}", 
                              f"effort.high_equivalents={round(EQUIVALENTS * evaluations)}"])
        setting = make_setting(config)
        space, budget = setting.space, 10 * 10**9
        predictor, table = BytesPredictor(setting.memory, space), setting.costs(budget)
        oracle = SyntheticOracle(space, config.seed, high_steps=config.fidelity.high,
                                 tokens_per_step=config.train.batch * config.train.length,
                                 eval_tokens=config.eval.tokens)
        simulated = SimulatedWorkers(oracle, self.workers, seed=0)
        made: list[Timed] = []
        count, begin = [0], time.process_time()

        def note(name: str) -> None:
            spent = time.process_time() - begin
            self.rows.append({
                "what": name, "workers": self.workers, "evaluations": count[0], "cpu_seconds": spent,
                "evaluations_per_second": count[0] / spent,
                "proposal_ms": 1e3 * float(np.median(made[-1].seconds[-500:])) if made else None,
                "journal_bytes": (self.folder / JOURNAL_NAME).stat().st_size,
                "memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "simulated_hours": simulated.minutes / 60,
                "utilisation": simulated.busy_minutes / max(1e-9, self.workers * simulated.minutes)})

        def listen(event: Mapping[str, Any]) -> None:
            count[0] += event["event"] == "evaluation"
            if event["event"] == "evaluation" and count[0] in ends:
                note(what)

        def problem(profile: SensitivityProfile) -> SearchProblem:
            self.problem = SearchProblem(space, table, budget, profile, config.fidelity.high, None, config.seed)
            return self.problem

        def searcher(found: SearchProblem, equivalents: float) -> Searcher:
            made.append(Timed(make_searcher(self.method, found, {}, equivalents)))
            return made[-1]

        parts = Parts(space, predictor, predictor.breakdown, simulated, problem, searcher, listeners=(listen,))
        Engine(engine_settings(config, self.folder, space, budget), parts).run()
        note(what)


def proposals(problem: SearchProblem, counts: Sequence[int]) -> list[Row]:
    """CPU seconds of the next proposals of every method, by how many evaluations it was told of: enough of them to see
    a generation end. A method is given up at the first that takes too long."""
    rows = []
    for method in METHODS:
        for n in counts:
            found = make_searcher(method, problem, {}, float(n))
            begin = time.process_time()
            found.tell(observations(problem, n))
            told, timed = time.process_time() - begin, Timed(found)
            truth, rng = Landscape(problem.space, seed=0), problem.rng("proposals")
            for number in range(PROPOSALS):
                asked = timed.ask(1)
                found.tell([evaluated(problem, truth, rng, p.allocation, n + number, p.stage) for p in asked])
                if not asked or max(timed.seconds) > ENOUGH_SECONDS:
                    break
            seconds = timed.seconds[1:]
            rows.append({"what": f"proposal, method={method}", "evaluations": n, "told_seconds": told,
                         "proposal_ms": 1e3 * max(seconds), "median_ms": 1e3 * float(np.median(seconds))})
            if max(seconds) > ENOUGH_SECONDS:
                break
    return rows


def limit(rows: Sequence[Row], method: str, seconds: float) -> float:
    """The most evaluations after which a method still proposes within ``seconds``."""
    good = [r["evaluations"] for r in rows if r["what"] == f"proposal, method={method}"
            and r["proposal_ms"] <= 1e3 * seconds]
    return max(good, default=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=100_000, help="of the whole search")
    parser.add_argument("--workers", type=int, default=1000, help="simulated workers")
    parser.add_argument("--quick", action="store_true", help="no proposals beyond 1,000 evaluations")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=memory_disk()) as folder:
        drive = Drive(Path(folder) / "run", options.workers)
        drive.session(options.evaluations, SEARCH, [n for n in ENDS if n < options.evaluations])
        drive.session(options.evaluations + options.workers, "resume: replay, and a little more")
    rows = drive.rows
    if drive.problem is not None:
        rows += proposals(drive.problem, [n for n in COUNTS if n <= (1000 if options.quick else max(COUNTS))])
    needed = options.workers / (60 * MINUTES)
    done = [r for r in rows if r["what"] == SEARCH][-1]
    targets = [
        Target(f"evaluations a CPU second of the driver, {done['evaluations']:,} on {options.workers:,} workers",
               f">= {needed:.2f}, what such workers finish", done["evaluations_per_second"],
               done["evaluations_per_second"] >= needed),
        Target("share of the time that workers are busy, stragglers and the last batch included", ">= 0.9",
               done["utilisation"], done["utilisation"] >= 0.9),
        *(Target(f"evaluations up to which method={m} proposes as fast as {options.workers:,} workers finish",
                 ">= 1,000", limit(rows, m, 1 / needed), limit(rows, m, 1 / needed) >= 1000) for m in METHODS)]
    publish("scale", targets, rows, ["what", "workers", "evaluations", "cpu_seconds", "evaluations_per_second",
                                     "proposal_ms", "journal_bytes", "memory_bytes", "utilisation"], threads=1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
