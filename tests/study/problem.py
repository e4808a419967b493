"""A four-unit problem for the engine, hand-sized memory, and a searcher that walks at random."""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qra_bo.config import RunConfig, load_config
from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.on_ray import RayExecutor
from qra_bo.execution.pool import Limits
from qra_bo.memory.formats import parse_format
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, CostTable, Linear, PhaseCost, SearchSpace, Unit, uniform
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.setting import Setting
from qra_bo.study.signals import RunInterrupted
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec, TrialState
from tests.study.oracles import FORMATS, TOKENS, UNITS, PlantedOracle

RANKS = (1, 2, 4, 8)
FORMAT_BYTES = {"hqq2": 20, "nf4": 40, "hqq8": 80, "fp16": 160}
RANK_BYTES, FIXED = 3, 100
HIGH, LOW = 8, 4
EQUIVALENT = HIGH * TOKENS + TOKENS  # 80 training tokens and 30 forward ones
OVERRIDES = {
    "model": "tiny", "data": "tiny", "device": "cpu", "dtype": "float32", "bits": [2, 4, 8], "ranks": list(RANKS),
    "budget": "uniform:4,4", "train.batch": 1, "train.length": TOKENS, "eval.sequences": 3, "fidelity.high": HIGH,
    "fidelity.low": LOW, "effort.max_full_trials": 24, "effort.uniform_baselines": None,
    "effort.calibration_baselines": 1, "effort.references": True,
    "confirm.seeds": 3, "calibrate.lr_scales": [.5, 2.0, 8.0], "adapter.lr": 1e-3,
    "adapter.lr_rule": "constant", "quantizer.rounding": "rtn", "memory.scope": "stored", "display": "none"}


def make_space(ranks: Sequence[int] = RANKS) -> SearchSpace:
    linears = [Linear(f"{name}.mlp.up", 64, 32, u, "mlp", "up") for u, name in enumerate(UNITS)]
    return SearchSpace(tuple(Unit(n, (m,)) for n, m in zip(UNITS, linears, strict=True)),
                       tuple(parse_format(f) for f in FORMATS), tuple(ranks))


def predict_bytes(a: Allocation) -> int:
    return FIXED + sum(FORMAT_BYTES[f] + RANK_BYTES * r for f, r in zip(a.formats, a.ranks, strict=True))


BUDGET = predict_bytes(uniform(4, "nf4", 4)) + 7  # with room for two more ranks


def make_costs(space: SearchSpace) -> CostTable:
    unit = np.array([[[FORMAT_BYTES[f.name] + RANK_BYTES * r for r in space.ranks] for f in space.formats]]
                    * space.n_units)
    return CostTable((PhaseCost("stored", FIXED, unit, np.zeros_like(unit)),))


class HandSized:
    """A memory model with a few bytes a unit."""

    scope = "stored"
    shape = SimpleNamespace(device="cpu")
    spec = SimpleNamespace(tables=(), linears=(SimpleNamespace(stored=""),))

    def table(self, space: SearchSpace) -> CostTable:
        return make_costs(space)

    def file_bytes(self, space: SearchSpace, a: Allocation) -> int:
        return sum(self.breakdown(space, a).values())

    def breakdown(self, space: SearchSpace, a: Allocation) -> dict[str, int]:
        return {"weights": sum(FORMAT_BYTES[f] for f in a.formats), "adapters": RANK_BYTES * sum(a.ranks),
                "workspace": FIXED}


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


class Silent(Walk):
    """Proposes nothing."""

    def ask(self, n: int) -> list[Proposal]:
        return []


class Recorded(Walk):
    """Keeps all that were made since a test emptied the list, with what each was asked and told in turn."""

    made: "list[Recorded]" = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self.problem, self.moves = problem, list[Any]()
        self.made.append(self)

    def ask(self, n: int) -> list[Proposal]:
        self.moves.append(super().ask(n))
        return list(self.moves[-1])

    def tell(self, evaluations: Sequence[Trial]) -> None:
        super().tell(evaluations)
        self.moves.append([e.spec.key for e in evaluations])


def make_problem(profile: SensitivityProfile, max_full_trials: float = 24.0) -> SearchProblem:
    return make_setting().problem(BUDGET, profile, max_full_trials)


@cache
def _composed(overrides: str) -> RunConfig:
    values = json.loads(overrides)
    return load_config([f"{'+' if key == 'model' else ''}{key}={json.dumps(value)}" for key, value in values.items()])


def make_setting(**changes: Any) -> Setting:
    """The planted problem; ``changes`` are overrides whose dots are written as two underscores."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    ordered = {"effort": changed.pop("effort", "normal"), **OVERRIDES, **changed}
    memory: Any = HandSized()
    config = _composed(json.dumps(ordered))
    return Setting(config, make_space(config.ranks), memory)


def run(folder: Path, executor: Executor | None = None, searcher: Any = Walk, *, budget: int = BUDGET,
        fine_tunes: bool = True, listeners: Sequence[Any] = (), **changes: Any) -> RunOutcome:
    """A run of the planted problem, by default with the planted oracle in this process."""
    return Engine(folder, make_setting(**changes), budget, executor or InProcessExecutor(PlantedOracle()), searcher,
                  fine_tunes=fine_tunes, listeners=listeners).run()


def compared(losses: Mapping[Allocation, Sequence[float | None]]) -> dict[Allocation, list[Trial]]:
    """Trials of allocations by training seed, with these test losses; ``None``: it diverged."""
    def trial(a: Allocation, seed: int, loss: float | None) -> Trial:
        spec = TrialSpec(a, 8, 8, train_seed=seed, split="test", learning_rate=1e-3)
        state = TrialState.DIVERGED if loss is None else TrialState.OK
        result = TrialResult(state, loss, None, () if loss is None else ((8, loss),), 8, 0, 0, None, 0.0)
        return Trial(seed, a, (4,) * len(a), "confirmation", Fidelity.HIGH, spec, 0, result, 1)

    return {a: [trial(a, seed, loss) for seed, loss in enumerate(found, 1)] for a, found in losses.items()}


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in a run's journal."""
    return [e for e in read_journal(folder / JOURNAL_NAME).events if e["event"] == kind]


def keys(folder: Path) -> list[str]:
    return [e["key"] for e in lines_of(folder, "trial")]


def warnings_of(folder: Path) -> list[str]:
    return [e["message"] for e in lines_of(folder, "warning")]


def comparable(best: Mapping[str, Any]) -> dict[str, Any]:
    """``best.json`` without times, what a machine measures, and the commit, which may move meanwhile."""
    plain: dict[str, Any] = json.loads(json.dumps(best))
    for key in list(plain["cost"]):
        if key.endswith("seconds"):
            del plain["cost"][key]
    del plain["memory"]["measured_bytes"], plain["provenance"]["git"]
    return plain


def main(folder: str, pause: float, executor: str = "local") -> None:
    """A whole run with worker processes, for tests that kill it: one of its own, or two of Ray."""
    spec = OracleSpec("tests.study.oracles:make", {"pause": pause})
    made: Executor = RayExecutor(spec, Limits(30, retries=1), 2, {"num_cpus": 1}, None) if executor == "ray" else \
        LocalExecutor([spec], Limits(30))
    run(Path(folder), made, effort__max_full_trials=14)


if __name__ == "__main__":
    try:
        main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
    except RunInterrupted as stop:
        sys.exit(stop.exit_status)
