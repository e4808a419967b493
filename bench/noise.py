"""Noise of paired differences between near allocations, in parts, and what lowering it costs.

    python -m bench.noise

Reads what is committed and trains nothing: repeats in the tables of real trials (bench/data/TASK/evaluations.csv and
finds.csv), losses by part of the held-out text (parts.jsonl, of ``python -m bench.noise_trials``), and losses of an
earlier comparison of methods and of searches on the real oracle (bench/results/table1_earlier, real-search). A paired
difference is that of two allocations on one training seed: what the seed does to both alike is not in it. *Near*
allocations have mean losses at most ``NEAR`` apart; all count that are in the better half of a table's repeats, or of
the comparison and at most at ``GOOD``. Intervals are of a bootstrap over allocations.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bench.collect.task import DATA, TASKS
from bench.noise_losses import Repeats, comparison_repeats, made_twice, repeats_of
from bench.noise_trials import BY, PARTS
from bench.report import RESULTS, publish
from qra_bo.oracle.emulator.emulator import usable
from qra_bo.oracle.emulator.levels import Noise
from qra_bo.oracle.emulator.table import Table, load_table
from qra_bo.space import Allocation, FloatArray
from qra_bo.study.state import FORWARD_SHARE

NEAR = 0.03
"""Nats: a little more than lies between the best uniform choice and the best known allocation of the tables."""
ALIKE = 8, 1.0
"""Units with another format, and mean distance of ranks in doublings, up to which near allocations are alike."""
ONE_RATE, TWO_RATES = 0.1, 0.5
"""Doublings between learning rates up to which they count as one, and from which on as two."""
GOOD = 3.9
"""Test loss (nats) up to which allocations of the comparison count."""
SEQUENCES = 64
"""Held-out sequences of a trial."""
WAYS = (("today", 1, 1), ("twice the text", 1, 2), ("four times the text", 1, 4), ("a second seed", 2, 1),
        ("a second seed and twice the text", 2, 2))
"""Ways to a less noisy comparison: training seeds, and held-out text as a multiple of a trial's."""
RESAMPLES = 2000
JOURNALS = "table1_earlier", "real-search"
"""Folders of the comparison and of searches on the real oracle, below the results."""
COMPARED = "plays"
"""Task of the comparison."""
COLUMNS = ("task", "what", "pairs_are", "split", "pairs", "allocations", "seeds", "sd", "low", "high", "way", "cost",
           "pays_from", "information")
Row = dict[str, Any]
Takes = Callable[[int, int], bool]


def paired_variances(losses: FloatArray) -> dict[tuple[int, int], tuple[float, int]]:
    """Variance of the difference of every two of ``n x S`` losses over the seeds they share, and its degrees of
    freedom; pairs that share fewer than two seeds are left out."""
    found = {}
    for i, j in combinations(range(len(losses)), 2):
        apart = losses[i] - losses[j]
        apart = apart[np.isfinite(apart)]
        if len(apart) > 1:
            found[i, j] = float(apart.var(ddof=1)), len(apart) - 1
    return found


def near_pairs(repeats: Repeats, takes: Takes) -> dict[tuple[int, int], tuple[float, int]]:
    """``paired_variances`` of the near pairs that ``takes`` accepts."""
    means = np.nanmean(repeats.losses, axis=1)
    return {(i, j): value for (i, j), value in paired_variances(repeats.losses).items()
            if abs(means[i] - means[j]) <= NEAR and takes(i, j)}


def over_allocations(pairs: Mapping[tuple[int, int], tuple[float, int]], n: int) -> Row:
    """Root of the mean of some values by pair of ``n`` allocations, weighed as given, with its 95 % interval."""
    first, second = np.array(list(pairs)).T
    values, weights = np.array(list(pairs.values())).T
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    drawn = counts[:, first] * counts[:, second] * weights
    drawn = drawn[drawn.sum(axis=1) > 0]
    low, high = np.quantile(np.sqrt(drawn @ values / drawn.sum(axis=1)), [0.025, 0.975])
    return {"pairs": len(pairs), "allocations": len({*first.tolist(), *second.tolist()}),
            "sd": math.sqrt(float(np.average(values, weights=weights))), "low": float(low), "high": float(high)}


def alike(a: Allocation, b: Allocation) -> bool:
    """Whether two allocations differ by few formats and small steps of the ranks."""
    formats = sum(x != y for x, y in zip(a.formats, b.formats, strict=True))
    return formats <= ALIKE[0] and float(np.abs(np.log2(a.ranks) - np.log2(b.ranks)).mean()) <= ALIKE[1]


def seed_rows(task: str, split: str, repeats: Repeats) -> list[Row]:
    """Rows of the training seed: of near pairs at one learning rate, those alike and the others, and at two rates."""
    a, rates = repeats.allocations, np.log2(repeats.rates)

    def one_rate(i: int, j: int) -> bool:
        return bool(abs(rates[i] - rates[j]) <= ONE_RATE)

    kinds: Mapping[str, Takes] = {
        "near": one_rate, "near and alike": lambda i, j: one_rate(i, j) and alike(a[i], a[j]),
        "near, not alike": lambda i, j: one_rate(i, j) and not alike(a[i], a[j]),
        "near, at two learning rates": lambda i, j: bool(abs(rates[i] - rates[j]) >= TWO_RATES)}
    found = ((kind, near_pairs(repeats, takes)) for kind, takes in kinds.items())
    return [{"task": task, "what": "training seed", "pairs_are": kind, "split": split,
             "seeds": 1 + max(freedom for _, freedom in pairs.values()), **over_allocations(pairs, len(a))}
            for kind, pairs in found if pairs]


def splits_row(task: str, repeats: Repeats) -> Row:
    """Row of what lies between a paired difference on the validation split (one seed) and its mean on the test split
    (other seeds), and what training seeds alone make of it (``sd_of_seeds``). The rest would be the texts'."""
    rates, means = np.log2(repeats.rates), np.nanmean(repeats.losses, axis=1)
    lead = repeats.validation - means
    pairs = near_pairs(repeats, lambda i, j: bool(abs(rates[i] - rates[j]) <= ONE_RATE and np.isfinite(
        lead[i] + lead[j])))
    alone = [variance * (1 + 1 / (freedom + 1)) for variance, freedom in pairs.values()]
    apart = {(i, j): ((lead[i] - lead[j]) ** 2, 1) for i, j in pairs}
    return {"task": task, "what": "validation less test split", "pairs_are": "near", "split": "both",
            **over_allocations(apart, len(means)), "sd_of_seeds": math.sqrt(float(np.mean(alone)))}


def rounding_row(task: str, losses: Sequence[tuple[float, float]]) -> Row:
    """Row of the noise that rounding alone makes in a paired difference, from trainings made twice on two kinds of CPU;
    on one kind both losses are the same to the last digit, and such ones don't count."""
    apart = [a - b for a, b in losses if a != b]
    return {"task": task, "what": "rounding on another CPU", "pairs_are": "one training, made twice",
            "split": "validation", "pairs": len(apart), "sd": math.sqrt(float(np.mean(np.square(apart))))}


def of_parts(sums: FloatArray, counts: FloatArray) -> float:
    """Variance of a mean difference over ``P`` parts of the text (clusters of tokens), from the sums of differences and
    the target tokens of each, both ``P``."""
    p, total = len(sums), float(counts.sum())
    residual = sums - sums.sum() / total * counts
    return float((residual**2).sum()) * p / (p - 1) / total**2


def text_variance(trials: Sequence[Mapping[str, Any]]) -> float:
    """Variance that the held-out text makes in a paired difference on the ``SEQUENCES`` of a trial, from losses by part
    of a longer text: what it does on every seed and what it does on one, which one seed can't tell apart."""
    sums: dict[int, dict[str, FloatArray]] = defaultdict(dict)
    for t in trials:
        sums[t["train_seed"]][t["fingerprint"]] = np.array(t["sums"])
    counts = np.array(trials[0]["counts"], dtype=np.float64)
    share = len(counts) * BY / SEQUENCES
    return float(np.mean([of_parts(a - b, counts) for of in sums.values() for a, b in combinations(of.values(), 2)])
                 ) * share


def cost_rows(table: Table, seed: float, text: float | None) -> list[Row]:
    """Rows of ways to buy a less noisy comparison, at their cost in trials of today.

    ``pays_from`` is the share of the variance that must be the text's for longer text to be worth its cost: below it,
    further trials are. ``information`` for the cost (today's is 1) has two bounds: as if the text's part were the same
    on all training seeds, and as if it were another on each, and so a part of what the seeds show.

    Args:
        table: Whose steps and tokens they are.
        seed: Variance of a paired difference over training seeds on one text.
        text: That of the text; ``None`` where it was not measured.
    """
    facts = table.facts
    train, forward = facts.steps * facts.step_tokens, FORWARD_SHARE * facts.eval_tokens
    rows: list[Row] = []
    for way, seeds, texts in WAYS:
        cost = seeds * (train + texts * forward) / (train + forward)
        pays = None if texts == 1 or seeds > 1 else (1 - 1 / cost) / (1 - 1 / texts)
        rows.append({"task": facts.task, "what": "equal cost", "way": way, "cost": cost, "pays_from": pays})
        if text is not None:
            alike = seed / seeds + text / texts
            own = (max(0.0, seed - text) + min(seed, text) / texts) / seeds
            rows[-1] |= {"information": [(seed + text) / (alike * cost), seed / (own * cost)],
                         "sd": [math.sqrt(alike), math.sqrt(own)]}
    return rows


def averaging_row(table: Table, noise: Noise) -> Row:
    """Row of the mean of the last loss with an early one, with the weight of least noise: what is left of the variance.

    Deviations and correlation are those of the emulators' repeats; that an early loss orders allocations as the last
    does is taken for granted.
    """
    ratio, shared = noise.early[-1]
    weight = min(1.0, max(0.0, (1 - ratio * shared) / (1 + ratio**2 - 2 * ratio * shared)))
    left = (1 - weight) ** 2 + (weight * ratio) ** 2 + 2 * weight * (1 - weight) * ratio * shared
    return {"task": table.facts.task, "what": "mean with the loss after an early step",
            "steps": table.facts.record_at[-1], "weight": weight, "variance_left": left}


def rows_of(folder: Path, comparison: Repeats | None) -> list[Row]:
    """Rows of one table, with the comparison of methods on its text where there is one."""
    table = load_table(folder)
    noise, task = usable(table).noise, table.facts.task
    rows, text = seed_rows(task, "validation", repeats_of(table)), None
    seed = rows[0]["sd"] ** 2
    rows += [{"task": task, "what": "training seed, as the emulators draw it", "pairs_are": "good ones",
              "split": "validation", "sd": math.sqrt(2.0) * noise.deviations[0]},
             rounding_row(task, made_twice(folder, table)), averaging_row(table, noise)]
    if comparison is not None:
        more, splits = seed_rows(task, "test", comparison), splits_row(task, comparison)
        rows += [*more, splits]
        seed, text = more[0]["sd"] ** 2, max(0.0, splits["sd"] ** 2 - splits["sd_of_seeds"] ** 2) / 2  # of two texts
    if (folder / PARTS).exists():
        trials = [json.loads(line) for line in (folder / PARTS).read_text(encoding="utf-8").splitlines()]
        text = text_variance(trials)
        rows.append({"task": task, "what": "held-out text", "pairs_are": "near", "split": "validation",
                     "allocations": len({t["fingerprint"] for t in trials}), "sd": math.sqrt(text)})
    return [*rows, *cost_rows(table, seed, text)]


def main() -> None:
    comparison = comparison_repeats([RESULTS / name for name in JOURNALS], GOOD)
    publish("noise", [], [row for task in TASKS for row in rows_of(DATA / task, comparison if task == COMPARED else
                                                                   None)], COLUMNS)


if __name__ == "__main__":
    main()
