"""From the traces of searches to regrets, their intervals, and targets."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.report import Target
from bench.search.kept import arena_of, rescaled
from bench.search.methods import OTHERS
from qra_bo.space import FloatArray
from qra_bo.study.intervals import paired_interval

Run = Mapping[str, Any]
LEAST_SEEDS = 10
RESAMPLES = 2000
HALF, THIRD = 0.5, 1.0 / 3.0
GROUPS = {"": (OTHERS, "the best peer"),
          "_uninformed": (("peer", "published"), "the best peer that takes I_q as published")}
"""By suffix of a row's keys: kinds of methods, against the best of which ours is held, and what that is called."""


def best_found(runs: Sequence[Run]) -> float:
    """The least noise-free loss that any search of this arena found, as an incumbent or among its five best."""
    return min(loss for run in runs for loss in (*(loss for _, loss in run["trace"]),
                                                 *(find["true_loss"] for find in run["finds"])))


def regrets(run: Run, best: float, uniform: float, costs: FloatArray) -> FloatArray:
    """Regret of the incumbent at each cost: 0 is the best known, 1 the best uniform choice.

    Args:
        run: Of one search.
        best: Best loss known in its arena.
        uniform: Loss of the best uniform choice.
        costs: Increasing, in equivalents, none before the first incumbent.
    """
    spent = np.array([cost for cost, _ in run["trace"]])
    losses = np.array([loss for _, loss in run["trace"]])
    at = np.searchsorted(spent, costs + 1e-9, side="right") - 1
    if at.min() < 0:
        raise ValueError(f"the first incumbent is there after {spent[0]:.2f} equivalents; asked for {costs.min():.2f}")
    found: FloatArray = (losses[at] - best) / max(uniform - best, 1e-12)
    return found


def interval(values: FloatArray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    drawn = np.median(values[rng.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def arena_rows(runs: Sequence[Run], kept: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """One row for every method of one arena, those of ``kept`` among them."""
    equivalents = max(run["equivalents"] for run in runs)
    costs = np.arange(np.ceil(max(run["trace"][0][0] for run in runs)), np.ceil(equivalents) + 2.0)
    best = min([best_found(runs), *(row["best_known"] for row in kept)])
    uniform = min(row["best_uniform"] for row in (*runs, *kept))
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_method[run["method"]].append(run)
    curves = {name: np.array([regrets(run, best, uniform, costs) for run in members])
              for name, members in by_method.items()}
    rows = [rescaled(row, best, uniform) for row in kept]
    for name, members in by_method.items():
        first, final = members[0], curves[name][:, -1]
        low, high = interval(final)
        rows.append({
            "task": first["task"], "emulator": first["emulator"], "budget": first["budget"], "method": name,
            "kind": first["kind"], "settings": first["settings"], "note": first["note"], "seeds": len(members),
            "rows_sha256": first["rows_sha256"],
            "regret": float(np.median(final)), "low": low, "high": high, "best_known": best, "best_uniform": uniform,
            "finals": {str(run["seed"]): float(value) for run, value in zip(members, final, strict=True)},
            "spent": float(np.median([run["trace"][-1][0] for run in members])),
            "after_baselines": float(np.median([run["after_baselines"] for run in members])),
            "refused": float(np.mean([run["refused"] for run in members])),
            "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in members])),
            "costs": costs.tolist(), "curve": np.median(curves[name], axis=0).tolist(),
            "quartiles": np.quantile(curves[name], [0.25, 0.75], axis=0).tolist()})
    return _with_costs(sorted(rows, key=lambda r: r["regret"]))


def _with_costs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add every group's best peer, and the cost at which each method's median reaches its final value for good; none if
    that peer never improves on the uniform baselines, which all methods get."""
    for suffix, (kinds, _) in GROUPS.items():
        peers = [row for row in rows if row["kind"] in kinds]
        if not peers:
            continue
        best = min(peers, key=lambda r: r["regret"])
        beats = best["regret"] < regret_at(best, best["after_baselines"]) - 1e-12
        for row in rows:
            row[f"best_peer{suffix}"], row[f"best_peer{suffix}_beats_baselines"] = best["method"], beats
            row[f"cost_to_best_peer{suffix}"] = for_good(row, best["regret"]) if beats else None
    return rows


def regret_at(row: Mapping[str, Any], cost: float) -> float:
    """Median regret at the first cost of the curve that is not below ``cost``."""
    return next((r for c, r in zip(row["costs"], row["curve"], strict=True) if c >= cost), row["curve"][-1])


def for_good(row: Mapping[str, Any], regret: float) -> float | None:
    """The cost from which on the median regret is at most ``regret``; ``None`` if it ends above."""
    cost = None
    for c, r in zip(reversed(row["costs"]), reversed(row["curve"]), strict=True):
        if r > regret + 1e-12:
            break
        cost = c
    return cost


def search_rows(runs: Sequence[Run], kept: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Rows of all arenas that have runs; ``kept``: see ``kept_rows``."""
    arenas: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        arenas[arena_of(run)].append(run)
    return [row for name in sorted(arenas)
            for row in arena_rows(arenas[name], [k for k in kept if arena_of(k) == name])]


def paired_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Final regret of every other method less that of ours at the same seeds, with a 95 % interval: in every arena, and
    by task over the mean of its arenas, whose searches share seeds and so count once."""
    found = []
    for task in dict.fromkeys(r["task"] for r in rows):
        here = [r for r in rows if r["task"] == task]
        arenas = list(dict.fromkeys((r["emulator"], r["budget"]) for r in here))
        ours = {(r["emulator"], r["budget"]): r["finals"] for r in here if r["kind"] == "qra_bo"}
        for name, kind in dict.fromkeys((r["method"], r["kind"]) for r in here if r["kind"] != "qra_bo"):
            by_arena = {a: {s: value - ours[a][s] for s, value in r["finals"].items() if s in ours[a]}
                        for a in arenas if a in ours for r in here
                        if (r["method"], r["emulator"], r["budget"]) == (name, *a)}
            base = {"task": task, "method": name, "kind": kind}
            found += [{**base, "emulator": a[0], "budget": a[1], **_paired(list(d.values()))}
                      for a, d in by_arena.items() if len(d) > 1]
            seeds = set.intersection(*(set(d) for d in by_arena.values())) if by_arena else set()
            if len(seeds) > 1:
                means = [float(np.mean([d[s] for d in by_arena.values()])) for s in sorted(seeds, key=int)]
                found.append({**base, "emulator": "all", "budget": "all", **_paired(means)})
    return found


def _paired(values: Sequence[float]) -> dict[str, float]:
    known = paired_interval(values)
    return {"mean": known.mean, "low": known.low, "high": known.high, "seeds": float(len(values)),
            "se": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def targets_of(rows: Sequence[Mapping[str, Any]], expected: Sequence[tuple[str, str, str]]) -> list[Target]:
    """What is asked of ours, in every arena of ``expected`` (task, emulator, budget) and over all of them: against all
    peers, and against those without our measure of quantisation sensitivity."""
    return [target for suffix in GROUPS for target in _targets(rows, expected, suffix)]


def _targets(rows: Sequence[Mapping[str, Any]], expected: Sequence[tuple[str, str, str]], suffix: str) -> list[Target]:
    """``targets_of`` against one of the ``GROUPS``."""
    (kinds, called), targets, ratios = GROUPS[suffix], list[Target](), list[float]()
    for task, emulator, budget in expected:
        here = [r for r in rows if (r["task"], r["emulator"], r["budget"]) == (task, emulator, budget)]
        ours = next((r for r in here if r["kind"] == "qra_bo"), None)
        peers = [r for r in here if r["kind"] in kinds]
        regret = f"{task}, {emulator}, {budget}: median final regret of qra_bo over that of {called}"
        cost = f"{task}, {emulator}, {budget}: cost of qra_bo to the final value of {called}, over all that it spent"
        if ours is None or not peers or min(r["seeds"] for r in (ours, *peers)) < LEAST_SEEDS:
            why = f"fewer than {LEAST_SEEDS} seeds of qra_bo and of every peer were run"
            targets += [Target(regret, "<= 0.5", None, False, why), Target(cost, "<= 1/3", None, False, why)]
            continue
        best = min(peers, key=lambda r: r["regret"])
        ratio, reached = ours["regret"] / max(best["regret"], 1e-12), ours[f"cost_to_best_peer{suffix}"]
        share = None if reached is None else reached / best["spent"]
        improves = ours[f"best_peer{suffix}_beats_baselines"]
        why = "" if share is not None else "qra_bo did not reach it" if improves else \
            "undefined: the best peer ends where the uniform baselines are, which all methods get"
        ratios.append(ratio)
        targets += [Target(f"{regret} ({best['method']})", "<= 0.5", ratio, ratio <= HALF),
                    Target(cost, "<= 1/3", share, share is not None and share <= THIRD, why)]
    whole, wins = len(ratios) == len(expected) and bool(expected), sum(r < 1.0 for r in ratios)
    return [*targets, Target(f"arenas in which qra_bo has a lower median regret than {called}",
                             f"{len(expected)} of {len(expected)}", float(wins) if whole else None,
                             whole and wins == len(ratios), "" if whole else "not every arena was run")]
