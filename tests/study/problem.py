"""A four-unit problem for the engine, hand-sized memory, and a searcher that walks at random."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.limits import Limits
from qra_bo.execution.local import LocalExecutor
from qra_bo.memory.formats import parse_format
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, CostTable, Ladder, Linear, PhaseCost, SearchSpace, Unit, uniform
from qra_bo.study.engine import Engine
from qra_bo.study.options import EngineConfig, FinalTask, Parts
from qra_bo.study.signals import RunInterrupted
from qra_bo.trials import Fidelity, Proposal, Trial
from tests.study.oracles import FORMATS, TOKENS, UNITS, PlantedOracle

RANKS = (1, 2, 4, 8)
FORMAT_BYTES = {"ref2": 20, "ref4": 40, "ref8": 80, "fp16": 160}
RANK_BYTES, FIXED = 3, 100
HIGH, LOW = 8, 4
EQUIVALENT = HIGH * TOKENS + TOKENS  # 80 training tokens and 30 forward ones


def make_space() -> SearchSpace:
    linears = [Linear(f"{name}.mlp.up", 64, 32, u, "mlp", "up") for u, name in enumerate(UNITS)]
    return SearchSpace(tuple(Unit(n, (m,)) for n, m in zip(UNITS, linears, strict=True)),
                       tuple(parse_format(f) for f in FORMATS), Ladder("ranks", RANKS))


def predict_bytes(a: Allocation) -> int:
    return FIXED + sum(FORMAT_BYTES[f] + RANK_BYTES * r for f, r in zip(a.formats, a.ranks, strict=True))


def breakdown(a: Allocation) -> dict[str, int]:
    return {"weights": sum(FORMAT_BYTES[f] for f in a.formats), "adapters": RANK_BYTES * sum(a.ranks),
            "workspace": FIXED}


BUDGET = predict_bytes(uniform(4, "ref4", 4)) + 7  # two more ranks fit: uniform filled is 4, 4, 5, 5


def make_costs(space: SearchSpace) -> CostTable:
    unit = np.array([[[FORMAT_BYTES[f] + RANK_BYTES * r for r in RANKS] for f in FORMATS]] * space.n_units)
    return CostTable((PhaseCost("stored", FIXED, unit, np.zeros_like(unit)),))


class Walk:
    """Random feasible allocations, each first at low fidelity, every second one then promoted."""

    name = "walk"

    def __init__(self, problem: SearchProblem) -> None:
        self._problem, self._rng = problem, problem.rng("walk")
        self._seen: set[Allocation] = set()
        self._promote: list[Allocation] = []
        self.told: list[Trial] = []

    def ask(self, n: int) -> list[Proposal]:
        if self._promote:
            return [Proposal(self._promote.pop(), Fidelity.HIGH, "evolution")]
        for _ in range(500):
            p = self._problem
            row = np.concatenate([self._rng.integers(0, 3, 4), self._rng.integers(0, 4, 4)])
            a = p.space.decode(row)
            if p.fits(a) and a not in self._seen:
                self._seen.add(a)
                return [Proposal(a, Fidelity.LOW, "evolution")]
        return []

    def tell(self, evaluations: Sequence[Trial]) -> None:
        self.told += evaluations
        self._seen.update(e.allocation for e in evaluations)
        for e in evaluations:
            if e.fidelity is Fidelity.LOW and e.ok and len(self.told) % 2:
                self._promote.append(e.allocation)


def make_problem(profile: SensitivityProfile) -> SearchProblem:
    space = make_space()
    return SearchProblem(space, make_costs(space), BUDGET, profile, HIGH, LOW, 0)


def make_config(folder: Path, **changes: Any) -> EngineConfig:
    config = changes.pop("config", {"model": {"name": "planted"}, "effort": {"name": "normal"}, "bits": [2, 4, 8]})
    kept = json.dumps({k: v for k, v in config.items() if k != "effort"}, sort_keys=True)
    base = EngineConfig(
        folder=folder, config=config, config_sha256=hashlib.sha256(kept.encode()).hexdigest(), model="planted",
        granularity="layer", oracle="synthetic", method="walk", scope="stored", budget_bytes=BUDGET,
        budget_text="uniform:4,4", effort="normal", max_full_trials=24, full_trial_tokens=EQUIVALENT, high_steps=HIGH,
        low_steps=LOW, seed=0, train_seed=11, confirm_seeds=(21, 22, 23), uniform_baselines=None, max_rank=32, base_lr=1e-3,
        lr_rule="constant", lr_scales=(.5, 2.0, 8.0), alpha_over_rank=2.0, init="nested",
        may_differ=frozenset({"effort"}), references=(uniform(4, "fp16", 16), uniform(4, "ref4", 8)), ranking_top=3,
        ranking_factor=2)
    return replace(base, **changes)


def make_parts(executor: Executor | None = None, searcher: type[Any] = Walk, **changes: Any) -> Parts:
    def build(problem: SearchProblem, equivalents: float) -> Searcher:
        made: Searcher = searcher(problem)
        return made

    parts = Parts(make_space(), predict_bytes, breakdown, executor or InProcessExecutor(PlantedOracle()), make_problem,
                  build)
    return replace(parts, **changes)


def comparable(best: Mapping[str, Any]) -> dict[str, Any]:
    """``best.json`` without times, what a machine measures, and the commit, which may move meanwhile."""
    plain: dict[str, Any] = json.loads(json.dumps(best))
    for key in list(plain["cost"]):
        if key.endswith("seconds"):
            del plain["cost"][key]
    del plain["memory"]["measured_bytes"], plain["provenance"]["git"]
    return plain


def deliver(task: FinalTask) -> Any:
    """A final fine-tune that takes no time."""
    from qra_bo.study.options import Delivery

    a = task.ranked[0]
    task.record("measured", {"allocation": a.to_json(), "predicted_bytes": predict_bytes(a), "measured_bytes": 1,
                             "scope": "stored", "fits": True})
    return Delivery(a, 100, 3.5, .01, "adapter")


def main(folder: str, pause: float, executor: str = "local") -> None:
    """A whole run with worker processes, for tests that kill it: one of its own, or two of Ray."""
    spec = OracleSpec("tests.study.oracles:make", {"pause": pause})
    if executor == "ray":
        from qra_bo.execution.on_ray import RayExecutor, Resources

        made: Executor = RayExecutor(spec, Limits(30, retries=1), 2, Resources(cpus=1), None)
    else:
        made = LocalExecutor([spec], Limits(30))
    Engine(make_config(Path(folder), max_full_trials=14), make_parts(made, finalise=deliver)).run()


if __name__ == "__main__":
    try:
        main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
    except RunInterrupted as stop:
        sys.exit(stop.exit_status)
