"""Comparison of ``effort=normal`` with the best uniform choice that fits: a table over finished runs.

    python -m bench.normal_runs RUN-FOLDER ...

Give the folders of runs at the two reference budgets, three search seeds each:

    python -m qra_bo dtype=bfloat16 method.rates=null budget=uniform:4,4 seed=0 out=...   (and seeds 1 and 2)
    python -m qra_bo dtype=bfloat16 method.rates=null budget=uniform:4,16 memory.scope=stored seed=0 out=...

The rates of the package were learned on the text that is trained on, so searches do without.

Runs with GPTQ's codes, the default, are kept in normal_runs_gptq.json; ``--codes rtn`` collects those with
``quantizer.rounding=rtn`` in normal_runs.json, and ``--finer`` those with ``bits=[2,3,4,5,6,8]`` in
normal_runs_gptq_finer.json.

*Better* means: the 95 % interval of paired differences on the test split, over at least 5 unseen training seeds, lies
below 0. A run that has not ended, or has other settings, is not counted. Rows of an earlier call are kept, unless their
budget, scope and seed are given again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Target, publish
from qra_bo.report.data import ReportData, load_run
from qra_bo.study.results import build_best
from qra_bo.trials import rounding_of
from qra_bo.utils.errors import QRABOError

NAME = "normal_runs"
BITS, FINER = (2, 3, 4, 8), (2, 3, 4, 5, 6, 8)
REFERENCE_BUDGETS = (("uniform:4,4", "peak"), ("uniform:4,16", "stored"))
MODEL, SEEDS_WANTED, SEEDS_BETTER, TRAIN_SEEDS = "smollm2_135m", 3, 2, 5
WALL_MINUTES, OVERHEAD_SHARE = 60.0, 0.1
COLUMNS = ("budget", "scope", "seed", "winner", "winner_kind", "mean", "low", "high", "better",
           "search_full_trial_equivalents", "full_trial_equivalents", "wall_minutes", "overhead_share", "not_counted")


def row_of(folder: Path, codes: str, bits: Sequence[int] = BITS) -> dict[str, Any]:
    """One run; ``not_counted`` says why it can't stand for its budget, and is empty where it can."""
    try:
        run = load_run(folder)
    except QRABOError as error:
        return {"folder": folder.name, "not_counted": str(error)}
    header = run.header
    row: dict[str, Any] = {"folder": folder.name, "budget": header.budget_text, "scope": header.scope,
                           "seed": header.seed, "model": header.model, "oracle": header.oracle,
                           "method": header.method, "version": header.version, "budget_bytes": header.budget_bytes}
    if not run.ended:
        return {**row, "not_counted": "the run has not ended"}
    return {**row, **finished(run, codes, bits)}


def finished(run: ReportData, codes: str, bits: Sequence[int]) -> dict[str, Any]:
    """What a run that has ended came to. Differences are candidate - best uniform (nats, test split); where the
    candidate lost they are still its own, although the winner is then the uniform choice."""
    best, confirmation = build_best(run.study), run.confirmation
    cost, memory = best["cost"], best["memory"]
    reasons = []
    if best["effort"] != "normal":
        reasons.append(f"effort={best['effort']}")
    if run.header.oracle != "finetune" or run.header.model != MODEL:
        reasons.append(f"oracle={run.header.oracle} on {run.header.model}")
    if rounding_of(run.header.config) != codes:
        reasons.append(f"quantizer.rounding={rounding_of(run.header.config)}")
    if list(run.header.config["bits"]) != list(bits):
        reasons.append(f"bits={list(run.header.config['bits'])}")
    if run.header.config["method"].get("rates") is not None:
        reasons.append(f"method.rates={run.header.config['method']['rates']}")
    if best["provenance"]["dtype"] != "bfloat16":
        reasons.append(f"dtype={best['provenance']['dtype']}")
    if confirmation is None or len(confirmation.train_seeds) < TRAIN_SEEDS:
        reasons.append(f"confirmed on {len(confirmation.train_seeds) if confirmation else 0} training seeds")
    if any("max_hours" in warning for warning in run.warnings):
        reasons.append("ended by max_hours")
    versus = best["versus_best_uniform"]
    better = bool(best["winner_kind"] == "mixed" and versus is not None and versus["high"] < 0
                  and memory["predicted_bytes"] <= memory["budget_bytes"])
    return {"winner": None if run.winner is None else run.name(run.winner), "winner_kind": best["winner_kind"],
            "versus_best_uniform": versus, "loss": best["loss"], "loss_se": best["loss_se"],
            "best_uniform": None if confirmation is None else run.name(confirmation.reference),
            "mean": None if confirmation is None else confirmation.mean,
            "low": None if confirmation is None else confirmation.low,
            "high": None if confirmation is None else confirmation.high, "better": better,
            "predicted_bytes": memory["predicted_bytes"], "measured_bytes": memory["measured_bytes"],
            "search_full_trial_equivalents": cost["search_full_trial_equivalents"],
            "full_trial_equivalents": cost["full_trial_equivalents"],
            "wall_minutes": cost["wall_seconds"] / 60,
            "overhead_share": cost["overhead_seconds"] / cost["wall_seconds"],
            "git": best["provenance"]["git"], "threads": best["provenance"]["threads"],
            "dtype": best["provenance"]["dtype"], "not_counted": "; ".join(reasons)}


def better_target(rows: Sequence[dict[str, Any]], budget: str, scope: str) -> Target:
    """How many search seeds of one budget are better; not measured while the missing ones could decide it."""
    what = f"budget={budget} memory.scope={scope}: search seeds that are better than the best uniform"
    wanted = f">= {SEEDS_BETTER} of {SEEDS_WANTED}"
    mine = [r for r in rows if (r.get("budget"), r.get("scope")) == (budget, scope)]
    counted = {r["seed"]: r for r in mine if not r["not_counted"]}
    value = sum(r["better"] for r in counted.values())
    if value < SEEDS_BETTER <= value + SEEDS_WANTED - len(counted) or len(counted) > SEEDS_WANTED:
        others = "".join(f"; {r['folder']}: {r['not_counted']}" for r in mine if r["not_counted"])
        return Target(what, wanted, None, False,
                      f"{len(counted)} search seeds have a finished run {sorted(counted)}, {SEEDS_WANTED} are "
                      f"wanted{others}")
    return Target(f"{what}, of {len(counted)} run", wanted, float(value), value >= SEEDS_BETTER)


def worst_target(rows: Sequence[dict[str, Any]], key: str, what: str, limit: float) -> Target:
    """The largest ``key`` of all runs that count."""
    values = [r[key] for r in rows if not r["not_counted"]]
    if not values:
        return Target(what, f"<= {limit:g}", None, False, "no finished run")
    return Target(what, f"<= {limit:g}", max(values), max(values) <= limit)


def earlier_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that count of the results file at ``path``; none where there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if not row["not_counted"]]


def collect(folders: Sequence[Path], codes: str, earlier: Sequence[dict[str, Any]] = (),
            bits: Sequence[int] = BITS) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows and targets of the given folders, and of ``earlier`` rows that these do not replace.

    Raises:
        SystemExit: If two runs that count have the same budget, scope and seed: only one can stand for it.
    """
    rows = [row_of(folder, codes, bits) for folder in folders]
    seen: dict[tuple[str, str, int], str] = {}
    for row in rows:
        if not row["not_counted"]:
            key = _key(row)
            if key in seen:
                raise SystemExit(f"{seen[key]} and {row['folder']} are both runs of budget={key[0]} "
                                 f"memory.scope={key[1]} seed={key[2]}; give one of them")
            seen[key] = row["folder"]
    rows += [row for row in earlier if _key(row) not in seen]
    targets = [better_target(rows, budget, scope) for budget, scope in REFERENCE_BUDGETS]
    targets.append(worst_target(rows, "wall_minutes", "minutes of the longest run", WALL_MINUTES))
    targets.append(worst_target(rows, "overhead_share", "largest share of a run spent on fits, proposals and journal",
                                OVERHEAD_SHARE))
    rows.sort(key=lambda r: (r.get("budget", ""), r.get("scope", ""), r.get("seed", -1)))
    return rows, targets


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["budget"], row["scope"], row["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--codes", choices=("gptq", "rtn"), default="gptq", help="quantizer.rounding of the runs")
    parser.add_argument("--finer", action="store_true", help=f"of runs with bits={list(FINER)}")
    args = parser.parse_args()
    name = NAME if args.codes == "rtn" else f"{NAME}_{args.codes}"
    name, bits = (f"{name}_finer", FINER) if args.finer else (name, BITS)
    rows, targets = collect(args.folders, args.codes, earlier_rows(args.out / f"{name}.json"), bits)
    publish(name, targets, rows, COLUMNS, folder=args.out)


if __name__ == "__main__":
    main()
