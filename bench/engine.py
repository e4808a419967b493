"""Time of one proposal of the default method at 32 to 560 units, on one thread.

    python -m bench.engine [--repeats 3] [--quick]

Shapes and memory are those of Llama-2-7B and 70B by layer and by module; nothing is trained. What the surrogate is
fitted to are losses of random allocations on a planted landscape: their number matters here, not what they say.
Targets are judged by CPU seconds, which on one thread are the wall-clock seconds of a machine that does nothing else.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.learn_rates import SHIPPED
from bench.methods import method_target
from bench.optimum import true_losses
from bench.report import RESULTS, Target, publish
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.oracle.synthetic import Landscape
from qra_bo.pipeline.pricing import make_memory
from qra_bo.searchers.base import SearchProblem, make_searcher
from qra_bo.searchers.evolution.variation import random_near_budget
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, uniform
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState

SPACES = (("llama2_7b", "layer"), ("llama2_70b", "layer"), ("llama2_7b", "module"), ("llama2_70b", "module"))
OBSERVATIONS = (0, 20, 60, 120)
LIMITS = {32: 2.0, 80: 5.0, 560: 15.0}
"""Most seconds of a proposal with 60 observations, by number of units."""
Row = dict[str, Any]


def make_problem(model: str, granularity: str) -> SearchProblem:
    """Units, memory and the budget of uniform 4 bits with r = 16 of a configured model; a planted profile."""
    cfg = load_config([f"+model={model}", f"granularity={granularity}"])
    spec = make_spec(cfg)
    space = make_space(cfg, spec)
    costs = make_memory(cfg, spec, "cuda").table(space)
    budget = int(costs.totals(space.encode(uniform(space.n_units, "nf4", 16))[None, :])[0])
    truth = Landscape(space, seed=0)
    gain = np.outer(truth.task, np.sqrt(np.arange(1, space.ranks[-1] + 1)))
    profile = SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats),
                                 truth.quantization_sensitivity, truth.quantization_sensitivity, gain, 4.7, "planted")
    return SearchProblem(space, costs, budget, profile, 24, None, seed=0, step_tokens=512)


def observations(problem: SearchProblem, n: int) -> list[Trial]:
    """``n`` random allocations near the budget with their planted losses."""
    rng, truth = problem.rng("observations"), Landscape(problem.space, seed=0)
    allocations = (problem.space.decode(random_near_budget(problem, rng)) for _ in range(n))
    return [evaluated(problem, truth, rng, a, number, "global") for number, a in enumerate(allocations)]


def evaluated(problem: SearchProblem, truth: Landscape, rng: np.random.Generator, allocation: Allocation, number: int,
              stage: str) -> Trial:
    """An allocation with its planted loss and a little noise, at high fidelity."""
    row = problem.space.encode(allocation)[None, :]
    loss = float(true_losses(truth, row)[0] + 0.003 * rng.standard_normal())
    request = TrialSpec(allocation, problem.high_steps, problem.high_steps, 1, 1.0)
    measured = TrialResult(TrialState.OK, loss, None, (), problem.high_steps, 0, 0, None, 0.0)
    return Trial(number, allocation, problem.space.bits(allocation), stage, Fidelity.HIGH, request, 0, measured,
                      int(problem.costs.totals(row)[0]))


def proposal_rows(problem: SearchProblem, counts: Sequence[int], repeats: int) -> list[Row]:
    """Least seconds of one proposal of the default method, the fit included, by how many losses it knows."""
    rows = []
    for n in counts:
        known, times = observations(problem, n), []
        for _ in range(repeats):
            searcher = make_searcher(method_target("default", {"rates": SHIPPED}),
                                     replace(problem, max_full_trials=40.0))
            searcher.tell(known)
            begin = time.perf_counter(), time.process_time()
            searcher.ask(1)
            times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        wall, cpu = map(min, zip(*times, strict=True))
        rows.append({"units": problem.space.n_units, "observations": n, "seconds": wall, "cpu_seconds": cpu})
    return rows


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """What is asked of the engine: proposals at three sizes."""
    targets = []
    for units, limit in LIMITS.items():
        found = [r["cpu_seconds"] for r in rows if r["units"] == units and r["observations"] <= 60]
        most = max(found, default=None)
        targets.append(Target(f"slowest proposal at {units} units with up to 60 observations, fit included (CPU s)",
                              f"<= {limit:g}", most, most is not None and most <= limit,
                              "" if found else f"{units} units were left out"))
    return targets


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many timings counts")
    parser.add_argument("--quick", action="store_true", help="0 and 60 observations only")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    counts = (0, 60) if options.quick else OBSERVATIONS
    rows = [{"model": model, "granularity": granularity, **row} for model, granularity in SPACES
            for row in proposal_rows(make_problem(model, granularity), counts, options.repeats)]
    columns = ["model", "granularity", "units", "observations", "seconds", "cpu_seconds"]
    publish("engine", targets_of(rows), rows, columns, threads=1, folder=options.out)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
