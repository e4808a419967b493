"""Committed losses of allocations on several training seeds: of the tables and of the comparison of methods."""

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.oracle.emulator.emulator import CALIBRATION, table_rate
from qra_bo.oracle.emulator.table import Table, same_rate
from qra_bo.space import Allocation, FloatArray
from qra_bo.study.setting import training_seeds

LEAST_SEEDS = 3
STEPS = 24
FINDS = "finds.csv"
RTN, GPTQ = "rtn", "gptq"
ONE_VALUE = 0.02
"""Doublings up to which two factors on the learning rate are one, as rounded in some journals."""
TRIAL = re.compile(rf"(\w+)-kaiming(-gptq\d+)?-{STEPS}-lr([\d.]+)-t(\d+)-(\w+)")
"""Keys of the comparison's trials at its own start of adapters."""
Choice = tuple[str, str, float]
"""Fingerprint, codes and factor on the learning rate."""


@dataclass(frozen=True)
class Repeats:
    """Losses of ``n`` trained choices on ``S`` training seeds.

    Args:
        allocations: ``n``.
        losses: ``n x S``, NaN where there is none.
        rates: Factor on the learning rate of each, ``n``.
        validation: Loss of each on the validation split and the search's own training seed, ``n``; NaN where there is
            none.
    """

    allocations: tuple[Allocation, ...]
    losses: FloatArray
    rates: FloatArray
    validation: FloatArray


def repeats_of(table: Table) -> Repeats:
    """The better half of a table's allocations with losses on at least ``LEAST_SEEDS`` seeds, at the table's rate."""
    rate = table_rate(table.rows)
    seeds = {seed: i for i, seed in enumerate(table.facts.train_seeds)}
    found: dict[Allocation, FloatArray] = defaultdict(lambda: np.full(len(seeds), np.nan))
    for row in table.rows:
        if row.loss is not None and row.origin != CALIBRATION and same_rate(row.lr_scale, rate):
            found[row.allocation][seeds[row.train_seed]] = row.loss
    known = sorted(((a, y) for a, y in found.items() if np.isfinite(y).sum() >= LEAST_SEEDS),
                   key=lambda pair: float(np.nanmean(pair[1])))
    known = known[:-(-len(known) // 2)]
    return Repeats(tuple(a for a, _ in known), np.array([y for _, y in known]), np.full(len(known), rate),
                   np.full(len(known), np.nan))


def made_twice(folder: Path, table: Table) -> list[tuple[float, float]]:
    """Both losses of trainings that were made for the table and again for its finds."""
    with (folder / FINDS).open(newline="", encoding="utf-8") as file:
        finds = {(r["fingerprint"], int(r["train_seed"]), float(r["lr_scale"])): float(r["loss"])
                 for r in csv.DictReader(file) if r["loss"]}
    return [(row.loss, finds[key]) for row in table.rows if row.loss is not None
            and (key := (row.allocation.fingerprint, row.train_seed, row.lr_scale)) in finds]


def comparison_repeats(folders: Sequence[Path], good: float) -> Repeats:
    """Quantised allocations with a mean test loss of at most ``good`` (nats), by codes and learning rate, from the
    journals of the comparison and of searches on the real oracle."""
    journals = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for folder in folders for path in sorted(folder.rglob("*.jsonl"))]
    shown = [e.get("recipe", e) for events in journals for e in events
             if e["event"] == "found" or (e["event"] == "trial" and "formats" in e)]
    known = {a.fingerprint: a for a in (Allocation(tuple(r["formats"]), tuple(r["ranks"])) for r in shown)}
    losses: dict[Choice, dict[tuple[str, int], float]] = defaultdict(dict)
    for events in journals:
        for choice, split, seed, loss in _trials(events):
            losses[choice][split, seed] = loss
    test = {choice: {seed: loss for (split, seed), loss in of.items() if split == "test"}
            for choice, of in losses.items() if choice[0] in known and "fp16" not in known[choice[0]].formats}
    keys = [choice for choice, of in test.items() if len(of) >= LEAST_SEEDS and np.mean(list(of.values())) <= good]
    seeds = sorted({seed for key in keys for seed in test[key]})
    own = "validation", training_seeds(0, 0)[0]
    held = [next((of[own] for choice, of in losses.items() if own in of and choice[:2] == key[:2]
                  and abs(math.log2(choice[2] / key[2])) <= ONE_VALUE), np.nan) for key in keys]
    return Repeats(tuple(known[key[0]] for key in keys),
                   np.array([[test[key].get(seed, np.nan) for seed in seeds] for key in keys]),
                   np.array([key[2] for key in keys]), np.array(held))


def _trials(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Choice, str, int, float]]:
    """Yield choice, split, training seed and loss of a journal's trials, of a search or of the comparison, at full
    length and the comparison's own start of adapters."""
    codes = events[0]["config"]["quantizer"]["rounding"]
    for e in events:
        if e["event"] != "trial" or e["state"] != "ok":
            continue
        trial = TRIAL.fullmatch(e["key"])
        if trial:
            yield (trial[1], GPTQ if trial[2] else RTN, float(trial[3])), trial[5], int(trial[4]), e["loss"]
        elif "split" in e and e["steps"] == STEPS and e["init"] is None:
            yield (e["fingerprint"], e["codes"] or codes, e["lr_scale"]), e["split"], e["train_seed"], e["loss"]
