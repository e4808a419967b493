"""A small table of trials on a planted landscape, whose true losses tests know."""

import csv
import functools
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.emulator.table import (
    MEMORY,
    PROFILE,
    PROFILE_BATCH,
    PROVENANCE,
    ROWS,
    SCHEMA_VERSION,
    TASK,
    ReferenceBudget,
    TableRow,
    TaskFacts,
    columns,
)
from qra_bo.oracle.protocol import quiet
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.sensitivity.profile import save_profile
from qra_bo.space import Allocation, CostTable, SearchSpace, uniform
from qra_bo.trials import TrialSpec
from tests.spaces import corners, make_costs, make_space

SEED, RATES, SEEDS = 5, (0.5, 1.0, 2.0), (11, 12, 13)


def make_oracle(n_units: int = 4, noise: float = 0.003) -> SyntheticOracle:
    return SyntheticOracle(make_space(n_units), SEED, noise=noise, high_steps=24)


def make_facts(n_units: int = 4) -> TaskFacts:
    space = make_space(n_units)
    costs = make_costs(space)
    low, high = (int(costs.totals(row[None, :])[0]) for row in corners(space))
    budgets = tuple(ReferenceBudget(f"share:{share}", scope, int(low + share * (high - low)))
                    for share, scope in ((0.3, "peak"), (0.45, "stored")))
    return TaskFacts("planted", "toy", "m0", "d0", 500, 8, "layer", tuple(u.name for u in space.units),
                     tuple(f.name for f in space.formats), space.ranks, "float64", {"batch": 4, "lr": 2e-3},
                     {"init": "kaiming", "alpha_over_rank": 2.0}, 128, 8192, 24, (6, 12), SEEDS, RATES, budgets)


@functools.cache
def _planted(n_units: int) -> tuple[SearchSpace, CostTable]:
    space = make_space(n_units)
    return space, make_costs(space)


def predict(allocation: Allocation) -> int:
    """Bytes at the next rank on the ladder; beyond it nothing fits."""
    space, costs = _planted(len(allocation))
    if max(allocation.ranks) > space.ranks[-1]:
        return 10**15
    inside = Allocation(allocation.formats, tuple(min(r for r in space.ranks if r >= rank)
                                                  for rank in allocation.ranks))
    return int(costs.totals(space.encode(inside)[None, :])[0])


def make_table(folder: Path, n_units: int = 4, noise: float = 0.003) -> Path:
    """A whole table on disk: uniform choices at three rates, random allocations, and repeats of some."""
    facts, space, oracle = make_facts(n_units), make_space(n_units), make_oracle(n_units, noise)
    costs = make_costs(space)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [{"name": p.name, "fixed": int(p.fixed), "unit": _each(p.unit), "spike": _each(p.spike)}
              for p in costs.phases]
    (folder / TASK).write_text(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(facts)}), encoding="utf-8")
    (folder / MEMORY).write_text(json.dumps({b.scope: tables for b in facts.budgets}), encoding="utf-8")
    save_profile(oracle.profile(quiet), folder / PROFILE)
    (folder / PROVENANCE).write_text(json.dumps({"batch": PROFILE_BATCH, "training_tokens": 512,
                                                 "forward_tokens": 9000}) + "\n", encoding="utf-8")

    def row(allocation: Allocation, origin: str, seed: int = SEEDS[0], scale: float = 1.0) -> TableRow:
        *early, m = (oracle.evaluate(TrialSpec(allocation, steps, 24, seed, facts.learning_rate * scale), quiet)
                     for steps in (*facts.record_at, 24))
        size = int(costs.totals(space.encode(allocation)[None, :])[0])
        return TableRow(allocation, origin, seed, scale, m.state, m.loss, m.loss_se,
                        tuple(e.loss for e in early), {"peak": size, "stored": size}, 1.0, "a")

    rng = np.random.default_rng(SEED)
    drawn = [space.decode(np.concatenate([rng.integers(0, n, n_units) for n in (len(space.formats), len(space.ranks))]))
             for _ in range(30)]
    grid = [uniform(n_units, f.name, rank) for f in space.formats for rank in space.ranks]
    rows = [row(uniform(n_units, "nf4", rank), "calibration", scale=s) for s in RATES for rank in (1, 4)]
    rows += [row(a, "wide") for a in dict.fromkeys((*drawn, *grid))]
    rows += [row(a, "repeat", seed) for a in drawn[:3] for seed in SEEDS[1:]]
    write_rows(folder / ROWS, facts, rows)
    return folder


def write_rows(path: Path, facts: TaskFacts, rows: Iterable[TableRow]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns(facts), lineterminator="\n")
        writer.writeheader()
        for r in rows:
            early = {f"loss_{step}": loss for step, loss in zip(facts.record_at, r.early, strict=True)}
            writer.writerow({"fingerprint": r.allocation.fingerprint, "origin": r.origin,
                             "formats": " ".join(r.allocation.formats), "ranks": " ".join(map(str, r.allocation.ranks)),
                             "train_seed": r.train_seed, "lr_scale": r.lr_scale, "state": r.state.value, "loss": r.loss,
                             "loss_se": r.loss_se, **early, **{f"{s}_bytes": size for s, size in r.bytes.items()},
                             "seconds": r.seconds, "batch": r.batch})


def _each(values: Any) -> dict[str, Any]:
    return {"tables": values.tolist(), "of_unit": list(range(len(values)))}
