"""What quick runs deliver, without training: on emulated tables of real trials, and on landscapes with a planted gain.

    python -m bench.simple [--seeds 40] [--only emulated|planted|none]

A delivered mix is held against the best simple choice by losses without noise. Planted landscapes are those of
oracle=synthetic, with so much of the damage by few bits left after training that the best mix is 0.03 nats better than
every simple choice, or with units that are all alike. Every finished run is a line of outputs/bench-simple/runs.jsonl
and is not repeated.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.emulator.emulator import FAMILIES
from bench.emulator.oracle import load_oracle
from bench.methods import OPTIONS
from bench.optimum import planted_parts, true_losses
from bench.report import RESULTS, Target, publish
from bench.store import append_line, read_lines
from bench.tasks import DATA, RATES, REFERENCE_BUDGETS, TASKS
from qra_bo.config import RunConfig, load_config
from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import quiet
from qra_bo.oracle.synthetic import KNEE, Landscape, SyntheticOracle
from qra_bo.pipeline.prepare import checked_budget, make_setting
from qra_bo.pipeline.run import searcher_factory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.rates.model import load_rates, of_training
from qra_bo.space import Allocation, FloatArray, SearchSpace, StorageFormat
from qra_bo.space.lagrangian import solve_relaxed
from qra_bo.study.baselines import fractional_choices, uniform_choices
from qra_bo.study.engine import Engine
from qra_bo.study.setting import Setting
from qra_bo.study.state import ENGINE_STAGES
from qra_bo.trials import Trial

RUNS = Path("outputs") / "bench-simple" / "runs.jsonl"
GAIN = 0.03
BUDGET = "mix:3.4,1"
"""Of planted landscapes: a fractional choice fills it, so that no mix gains by bytes that it leaves."""
HALVINGS = 8
Row = dict[str, Any]


class Planted(Landscape):
    """A landscape of which training repairs most, as on real models.

    Of the damage that a profile measures before training a share is left, whatever the rank (else units of few bits
    would take larger ranks, and no simple choice could be best), and ranks are worth that share of the original's.
    The shares of 40 seeds are 0.05 to 0.21. At their median, 0.08, doubling rank 1 is worth 0.004 nats; the rates
    learned on SmolLM2-135M say 0.0042 nats, and 0.17 of the damage.

    Args:
        share: That share.
        alike: Whether all units are alike, so that no mix is better than the best simple choice.
    """

    def __init__(self, space: SearchSpace, seed: int, share: float, alike: bool) -> None:
        self._left, self._alike = share, alike
        super().__init__(space, seed)
        self.task = share * (np.full_like(self.task, self.task.mean()) if alike else self.task)
        self.unlearned = self.missed(np.array(space.ranks, dtype=np.float64)[None, :])

    def format_sensitivity(self, fmt: StorageFormat) -> FloatArray:
        """As of the original, or the mean of its units."""
        found = super().format_sensitivity(fmt)
        return np.full_like(found, found.mean()) if self._alike else found

    def kept(self, ranks: FloatArray) -> FloatArray:
        """The same share of every unit and rank."""
        return np.full((self.space.n_units, ranks.shape[1]), self._left)


def best_loss(landscape: Landscape, problem: SearchProblem) -> float:
    """Return the least planted loss within the budget: of knapsacks at slopes of the curve that bends the sum."""
    left, unlearned = planted_parts(landscape)
    tables = (slope * left + unlearned[:, None, :] for slope in np.linspace(1.0, 1 + 2 * KNEE, 4))
    rows = np.stack([solve_relaxed(table, problem.costs, problem.budget_bytes, None) for table in tables])
    return float(true_losses(landscape, rows).min())


def choices_of(setting: Setting, problem: SearchProblem) -> list[Allocation]:
    """Return every simple choice that fits."""
    rates = of_training(load_rates(setting.config.surrogate.rates), problem, problem.high_steps)
    uniforms = uniform_choices(setting.rules(problem.budget_bytes), problem, rates)
    return [*uniforms, *fractional_choices(problem, rates)]


def planted_oracle(setting: Setting, budget: int, seed: int, alike: bool) -> tuple[SyntheticOracle, float]:
    """Return an oracle of units whose best mix is GAIN better than the best simple choice, or that are all alike and
    else the same, and by how much the best mix is better."""
    config, space = setting.config, setting.space
    oracle = SyntheticOracle(space, seed, learning_rate=config.adapter.lr, high_steps=config.fidelity.high,
                             tokens_per_step=config.train.step_tokens, test_times=config.eval.test_times,
                             calibration_tokens=config.train.length)
    problem = setting.problem(budget, oracle.profile(quiet), 0.0)
    formats, simple = {f.name: f for f in space.formats}, choices_of(setting, problem)

    def planted(share: float, alike: bool) -> tuple[Landscape, float]:
        found = Planted(space, seed, share, alike)
        least = min(found.trained(a, [formats[f] for f in a.formats])[1] for a in simple)
        return found, max(0.0, least - best_loss(found, problem))

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if planted(middle, False)[1] < GAIN else (low, middle)
    oracle.landscape, found = planted(high, alike)
    return oracle, found


def outcome_of(setting: Setting, budget: int, oracle: Any, true: Callable[[Allocation], float]) -> Row:
    """Run one search; return what it delivers, beside the best simple choice that it tried, by losses without noise."""
    with tempfile.TemporaryDirectory() as folder:
        study = Engine(Path(folder), setting, budget, InProcessExecutor(oracle), searcher_factory(setting.config),
                       fine_tunes=False).run().study
    winner, c = study.winner, study.confirmation
    assert winner is not None
    assert c is not None
    deciding = c if c.candidate != c.reference or c.versus_uniform is None else c.versus_uniform
    simple: list[Trial] = [e for e in study.points if study.is_simple(e)]
    return {"delivered": study.kind_of(winner), "mean": deciding.mean, "low": deciding.low, "high": deciding.high,
            "seeds": len(deciding.train_seeds), "proposals": sum(e.stage not in ENGINE_STAGES for e in study.trials),
            "true_difference": true(winner) - min(true(e.allocation) for e in simple)}


def emulated(task: str, family: str, budget: str, scope: str, seed: int) -> Row:
    """One quick run on an emulated table, with exchange rates from the other one."""
    (other,) = (name for name in TASKS if name != task)
    config = load_config(["effort=quick", "oracle=emulator", f"oracle.table={DATA / task}", f"oracle.emulator={family}",
                          f"budget={budget}", f"memory.scope={scope}", f"seed={seed}", "device=cpu", *COMMON,
                          f"surrogate.rates={DATA / other / RATES}"], str(OPTIONS))
    setting = make_setting(config)
    oracle = load_oracle(DATA / task, family, setting.space)
    return outcome_of(setting, checked_budget(setting), oracle, lambda a: float(oracle.losses_of(a)[-1]))


COMMON = ("train=cpu", "display=none", "search.length=trial")


def planted(seed: int, alike: bool) -> Row:
    """One quick run on a planted landscape."""
    config: RunConfig = load_config(["effort=quick", "oracle=synthetic", f"budget={BUDGET}", f"seed={seed}",
                                     "memory.scope=stored", "device=cpu", "dtype=float32", *COMMON])
    setting = make_setting(config)
    budget = checked_budget(setting)
    oracle, found = planted_oracle(setting, budget, seed, alike)
    formats = {f.name: f for f in setting.space.formats}
    return {"planted": found, **outcome_of(setting, budget, oracle, lambda a: oracle.landscape.trained(
        a, [formats[f] for f in a.formats])[1])}


def wanted(seeds: int, only: str | None) -> list[tuple[Row, Callable[[], Row]]]:
    """Return what identifies every run, with the function that makes it; the seeds outermost."""
    found: list[tuple[Row, Callable[[], Row]]] = []
    for seed in range(seeds):
        for what, alike in (("planted", False), ("none", True)):
            found.append(({"what": what, "seed": seed}, lambda seed=seed, alike=alike: planted(seed, alike)))
    places = list(itertools.product(TASKS, FAMILIES, REFERENCE_BUDGETS))
    for i in range(seeds):  # the arenas in turn
        task, family, (budget, scope) = places[i % len(places)]
        found.append(({"what": "emulated", "task": task, "emulator": family, "budget": budget, "seed": i},
                      lambda a=(task, family, budget, scope, i): emulated(*a)))
    return [item for item in found if only in (None, item[0]["what"])]


def targets_of(rows: Sequence[Row], seeds: int) -> list[Target]:
    """What is asked of 40 runs of each kind."""
    by = {what: [r for r in rows if r["what"] == what] for what in ("emulated", "planted", "none")}
    mixes = {what: [r for r in found if r["delivered"] == "mixed"] for what, found in by.items()}
    worse = sum(r["true_difference"] > (r["high"] - r["low"]) / 2 for r in by["emulated"])
    asked = (("emulated", "runs that deliver what is worse than the best simple choice by more than the interval's "
              "half-width", "0", float(worse), worse == 0),
             ("planted", f"runs that deliver a mix where one is {GAIN} nats better", ">= 36 of 40",
              float(len(mixes["planted"])), len(mixes["planted"]) >= 36),
             ("none", "runs that deliver a mix as better where nothing is planted", "<= 2 of 40",
              float(len(mixes["none"])), len(mixes["none"]) <= 2))
    return [Target(text, target, value, met) if len(by[what]) >= seeds else
            Target(text, target, None, False, f"{len(by[what])} of {seeds} runs were made")
            for what, text, target, value, met in asked]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", choices=("emulated", "planted", "none"))
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    rows: list[Row] = [json.loads(line) for line in read_lines(options.runs)]
    for identity, make in wanted(options.seeds, options.only):
        if not any(identity.items() <= row.items() for row in rows):
            rows.append(identity | make())
            append_line(options.runs, json.dumps(rows[-1]))
            print(json.dumps(rows[-1]), flush=True)
    summary = []
    for what in ("emulated", "planted", "none"):
        found = [r for r in rows if r["what"] == what]
        gains = [-r["true_difference"] for r in found if r["delivered"] == "mixed"]
        summary.append({"what": what, "runs": len(found), "mixed": len(gains), "fractional": sum(
            r["delivered"] == "fractional" for r in found), "mean_gain": float(np.mean(gains)) if gains else None,
            "worst_difference": max((r["true_difference"] for r in found), default=None)})
    publish("simple", targets_of(rows, options.seeds), [*summary, *rows], list(summary[0]), shown=summary,
            folder=options.out)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
