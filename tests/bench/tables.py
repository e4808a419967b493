"""A small table of evaluations on a planted landscape, whose true losses tests know."""

import contextlib
import io
import json
from pathlib import Path

from bench.collect.__main__ import Collection, work
from bench.collect.plan import Plan, Sizes
from bench.collect.task import Setting
from bench.collect.writing import append_provenance, costs_to_json, facts_to_json
from bench.emulator.table import (
    MEMORY,
    PROFILE,
    PROFILE_BATCH,
    PROVENANCE,
    TASK,
    ReferenceBudget,
    TaskFacts,
)
from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.io import save_profile
from qra_bo.space import Allocation
from qra_bo.study.setting import BaselineRules
from tests.spaces import corners, make_costs, make_space

SEED = 5
SMALL = Sizes(designed=3, near=3, wide=2, neighbours=4, repeats=3)


def make_oracle(n_units: int = 4, noise: float = 0.003) -> SyntheticOracle:
    return SyntheticOracle(make_space(n_units), SEED, noise=noise, high_steps=24, record_at=(6, 12))


def make_setting(n_units: int = 4) -> Setting:
    space = make_space(n_units)
    costs = make_costs(space)
    low, high = (int(costs.totals(row[None, :])[0]) for row in corners(space))
    oracle = make_oracle(n_units)
    budgets = tuple(ReferenceBudget(f"share:{share}", scope, int(low + share * (high - low)))
                    for share, scope in ((0.3, "peak"), (0.45, "stored")))
    facts = TaskFacts("planted", "toy", "m0", "d0", 500, 8, "layer", tuple(u.name for u in space.units),
                      tuple(f.name for f in space.formats), space.ranks.values, "float64", {"batch": 4, "lr": 2e-3},
                      {"init": "kaiming", "alpha_over_rank": 2.0}, 128, 8192, 24, (6, 12), (11, 12, 13),
                      (0.5, 1.0, 2.0), budgets)

    def predict(allocation: Allocation) -> int:
        """That of the next rank on the ladder; beyond it nothing fits."""
        if max(allocation.ranks) > space.ranks.values[-1]:
            return 10**15
        inside = Allocation(allocation.formats, tuple(min(r for r in space.ranks.values if r >= rank)
                                                      for rank in allocation.ranks))
        return int(costs.totals(space.encode(inside)[None, :])[0])

    profile = oracle.profile(lambda *_: None)
    problems = tuple(SearchProblem(space, costs, b.bytes, profile, 24, None, 0, step_tokens=512)
                     for b in budgets)
    rules = tuple(BaselineRules(n_units, facts.formats, 8, b.bytes, predict) for b in budgets)
    return Setting(facts, space, {"peak": predict, "stored": predict}, problems, rules)


def make_plan(setting: Setting, seed: int = 0, sizes: Sizes = SMALL) -> Plan:
    return Plan(setting.facts, setting.problems, setting.rules, seed, sizes)


def make_table(folder: Path, n_units: int = 4, noise: float = 0.003, sizes: Sizes = SMALL) -> Path:
    """A whole table on disk."""
    setting = make_setting(n_units)
    collection = make_collection(folder, setting, noise=noise)
    (folder / TASK).write_text(json.dumps(facts_to_json(setting.facts)), encoding="utf-8")
    costs = {b.scope: p.costs for b, p in zip(setting.facts.budgets, setting.problems, strict=True)}
    (folder / MEMORY).write_text(json.dumps(costs_to_json(costs)), encoding="utf-8")
    save_profile(setting.problems[0].profile, folder / PROFILE)
    append_provenance(folder / PROVENANCE, PROFILE_BATCH, {"training_tokens": 512, "forward_tokens": 9000})
    with contextlib.redirect_stdout(io.StringIO()):
        work(collection, make_plan(setting, sizes=sizes), None, None)
    return folder


def make_collection(folder: Path, setting: Setting | None = None, session: str = "a",
                    noise: float = 0.003) -> Collection:
    chosen = setting or make_setting()
    folder.mkdir(parents=True, exist_ok=True)
    executor = InProcessExecutor(make_oracle(len(chosen.facts.units), noise))
    return Collection(folder, chosen, executor, {"begun": session, "device": "cpu"})
