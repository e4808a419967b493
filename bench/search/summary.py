"""From the traces of searches to regrets, their intervals, and what is asked of ours."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.report import Target
from qra_bo.sensitivity.profile import FloatArray

Run = Mapping[str, Any]
LEAST_SEEDS = 10
RESAMPLES = 2000
HALF, THIRD = 0.5, 1.0 / 3.0


def best_found(runs: Sequence[Run]) -> float:
    """The least noise-free loss that any search of this arena found, as an incumbent or among its five best."""
    return min(loss for run in runs for loss in (*(loss for _, loss in run["trace"]),
                                                 *(find["true_loss"] for find in run["finds"])))


def regrets(run: Run, best: float, uniform: float, costs: FloatArray) -> FloatArray:
    """Regret of the incumbent at each cost: 0 is the best known, 1 the best uniform choice. Before the first
    incumbent it is that of the first.

    Args:
        run: Of one search.
        best: Best loss known in its arena.
        uniform: Loss of the best uniform choice.
        costs: Increasing, in equivalents.
    """
    spent = np.array([cost for cost, _ in run["trace"]])
    losses = np.array([loss for _, loss in run["trace"]])
    at = np.clip(np.searchsorted(spent, costs + 1e-9, side="right") - 1, 0, None)
    found: FloatArray = (losses[at] - best) / max(uniform - best, 1e-12)
    return found


def interval(values: FloatArray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    drawn = np.median(values[rng.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def arena_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for every method of one arena."""
    equivalents = max(run["equivalents"] for run in runs)
    costs = np.arange(1.0, np.ceil(equivalents) + 2.0)
    best, uniform = best_found(runs), min(run["best_uniform"] for run in runs)
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_method[run["method"]].append(run)
    curves = {name: np.array([regrets(run, best, uniform, costs) for run in members])
              for name, members in by_method.items()}
    rows = []
    for name, members in by_method.items():
        first, final = members[0], curves[name][:, -1]
        low, high = interval(final)
        rows.append({
            "task": first["task"], "emulator": first["emulator"], "budget": first["budget"], "method": name,
            "kind": first["kind"], "settings": first["settings"], "note": first["note"], "seeds": len(members),
            "regret": float(np.median(final)), "low": low, "high": high, "best_known": best, "best_uniform": uniform,
            "spent": float(np.median([run["trace"][-1][0] for run in members])),
            "refused": float(np.mean([run["refused"] for run in members])),
            "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in members])),
            "costs": costs.tolist(), "curve": np.median(curves[name], axis=0).tolist(),
            "quartiles": np.quantile(curves[name], [0.25, 0.75], axis=0).tolist()})
    return _with_costs(sorted(rows, key=lambda r: r["regret"]))


def _with_costs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what each method spent until its median reached the best peer's final median, and that peer's name."""
    peers = [row for row in rows if row["kind"] in ("peer", "published")]
    if not peers:
        return rows
    best = min(peers, key=lambda r: r["regret"])
    for row in rows:
        reached = [cost for cost, regret in zip(row["costs"], row["curve"], strict=True)
                   if regret <= best["regret"] + 1e-12]
        row["best_peer"] = best["method"]
        row["cost_to_best_peer"] = reached[0] if reached else None
    return rows


def search_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of all arenas."""
    arenas: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        arenas[run["arena"]].append(run)
    return [row for name in sorted(arenas) for row in arena_rows(arenas[name])]


def targets_of(rows: Sequence[Mapping[str, Any]], expected: Sequence[tuple[str, str, str]]) -> list[Target]:
    """What is asked of ours, in every arena of ``expected`` (task, emulator, budget) and over all of them."""
    targets, ratios = [], []
    for task, emulator, budget in expected:
        here = [r for r in rows if (r["task"], r["emulator"], r["budget"]) == (task, emulator, budget)]
        ours = next((r for r in here if r["kind"] == "ours"), None)
        peers = [r for r in here if r["kind"] in ("peer", "published")]
        regret = f"{task}, {emulator}, {budget}: median final regret of ours over the best peer's"
        cost = f"{task}, {emulator}, {budget}: cost of ours to the best peer's final value, over all that peer spent"
        if ours is None or not peers or min(r["seeds"] for r in (ours, *peers)) < LEAST_SEEDS:
            why = f"fewer than {LEAST_SEEDS} seeds of ours and of every peer were run"
            targets += [Target(regret, "<= 0.5", None, False, why), Target(cost, "<= 1/3", None, False, why)]
            continue
        best = min(peers, key=lambda r: r["regret"])
        ratio = ours["regret"] / max(best["regret"], 1e-12)
        share = None if ours["cost_to_best_peer"] is None else ours["cost_to_best_peer"] / best["spent"]
        ratios.append(ratio)
        targets += [Target(f"{regret} ({best['method']})", "<= 0.5", ratio, ratio <= HALF),
                    Target(cost, "<= 1/3", share, share is not None and share <= THIRD,
                           "" if share is not None else "ours did not reach it")]
    whole = len(ratios) == len(expected) and bool(expected)
    why = "" if whole else "not every arena was run"
    return [*targets, Target("arenas in which ours has the least median regret", f"{len(expected)} of {len(expected)}",
                             float(sum(r < 1.0 for r in ratios)) if whole else None,
                             whole and all(r < 1.0 for r in ratios), why)]
