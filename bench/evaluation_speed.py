"""Speed of a trial: our training loop against PEFT + transformers' Trainer, and the cost of switching.

    python -m bench.evaluation_speed [--rounds 5] [--steps 10] [--warm 2] [--threads N] [--model NAME] [--device auto]

Both train the same mixed allocation on the same packed batches in the same compute type with the same threads. Every
measurement is a process of its own, like a run's worker; the three variants take turns, and the order rotates. The
Trainer runs once as started from a shell, and once with the malloc settings of our worker. Run it on an idle machine;
``load_average`` is in the results.

On a CPU with enough memory, our worker keeps every layer's unpacked weight beside the packed one, which costs host
memory and changes no result. The row *packed weights only* is our loop without that: it unpacks at every use, like the
Trainer's layers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Target, publish
from qra_bo.pipeline.executors import prepare_worker_environment

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"qra_bo": ("ours", True), "Trainer": ("trainer", False), "Trainer, our malloc settings": ("trainer", True)}
"""Side and whether it gets the worker's environment, by the name in the table."""
SWITCH_SHARE = 0.05
LOSS_TOLERANCE = 0.02
"""Nats: what rounding in another order may do to the mean loss of a batch in bf16."""
Measured = dict[str, list[dict[str, Any]]]


def measure(args: argparse.Namespace) -> Measured:
    """Results of every variant, one a round.

    Raises:
        SystemExit: If a variant fails, or the two sides do not train the same model: as many parameters, and a loss
            before the first step that differs by at most ``LOSS_TOLERANCE``.
    """
    plain = dict(os.environ)
    prepare_worker_environment()
    tuned = dict(os.environ)
    found: Measured = {name: [] for name in SIDES}
    names = list(SIDES)
    for number in range(args.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            side, with_malloc = SIDES[name]
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(run_side(side, tuned if with_malloc else plain, args))
    everything = [result for results in found.values() for result in results]
    trainable, losses = {r["trainable"] for r in everything}, [r["first_loss"] for r in everything]
    if len(trainable) != 1 or max(losses) - min(losses) > LOSS_TOLERANCE:
        raise SystemExit(f"the sides do not train the same model: {sorted(trainable)} parameters, losses before the "
                         f"first step from {min(losses):.4f} to {max(losses):.4f}")
    return found


def run_side(side: str, environment: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """One process of one side; its result."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.sides", side, "--steps", str(args.steps), "--warm", str(args.warm),
         "--threads", str(args.threads), "--model", args.model, "--device", args.device],
        env={**environment, "OMP_NUM_THREADS": str(args.threads)}, cwd=ROOT, capture_output=True, text=True,
        check=False)
    if done.returncode:
        raise SystemExit(f"the side {side!r} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows_of(found: Measured) -> list[dict[str, Any]]:
    """A row for every variant, then our evaluation and switching."""
    ours = [r["tokens_per_second"] for r in found["qra_bo"]]
    rows = []
    for name, results in found.items():
        rates = [r["tokens_per_second"] for r in results]
        ratios = [a / b for a, b in zip(ours, rates, strict=True)]
        rows.append({"what": f"training: {name}", **spread("tokens_per_second", rates),
                     "ratio": None if name == "qra_bo" else statistics.median(ratios), "ratio_low": min(ratios),
                     "ratio_high": max(ratios), "rounds": len(results),
                     **{k: results[0][k] for k in ("steps", "batch", "length", "dtype", "device", "trainable",
                                                   "first_loss")}})
    mine = found["qra_bo"]
    rows.append({"what": "training: qra_bo, packed weights only", "rounds": len(mine),
                 "kept_otherwise": mine[0]["keeps_unpacked"],
                 **spread("tokens_per_second", [r["packed_tokens_per_second"] for r in mine])})
    rows.append({"what": "evaluation, forward only: qra_bo", "rounds": len(mine),
                 **spread("tokens_per_second", [r["evaluation_tokens"] / r["evaluation_seconds"] for r in mine])})
    rows.append({"what": "switch to a new allocation: qra_bo", "rounds": len(mine),
                 **spread("seconds", [r["switch_seconds"] for r in mine])})
    if mine[0]["low_steps"] is not None:
        rows.append({"what": "switch, share of a low-fidelity evaluation", "rounds": len(mine),
                     **spread("share", [switch_share(r) for r in mine])})
    return rows


def spread(what: str, values: list[float]) -> dict[str, Any]:
    """Median and range over the rounds."""
    return {"unit": what, "median": statistics.median(values), "low": min(values), "high": max(values)}


def switch_share(result: Mapping[str, Any]) -> float:
    """Switch over the whole low-fidelity evaluation: switch, its steps, one look at the held-out text."""
    switch = float(result["switch_seconds"])
    whole = switch + result["low_steps"] * result["step_seconds"] + result["evaluation_seconds"]
    return float(switch / whole)


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """At least as fast as either Trainer; a switch of at most 5 % of a low-fidelity evaluation."""
    by_name = {row["what"]: row for row in rows}
    targets = [Target(f"our training tokens per second over those of: {name}", ">= 1.0",
                      by_name[f"training: {name}"]["ratio"], by_name[f"training: {name}"]["ratio"] >= 1.0)
               for name in SIDES if name != "qra_bo"]
    share = by_name.get("switch, share of a low-fidelity evaluation")
    what, limit = "switch to a new allocation, share of a low-fidelity evaluation", f"<= {SWITCH_SHARE}"
    targets.append(Target(what, limit, share["median"], share["median"] <= SWITCH_SHARE) if share else
                   Target(what, limit, None, False, "the configuration has no low fidelity"))
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed optimiser steps of a process")
    parser.add_argument("--warm", type=int, default=2, help="untimed steps before them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args()
    rows = rows_of(measure(args))
    publish("evaluation_speed", targets_of(rows), rows, ("what", "unit", "median", "low", "high", "ratio", "ratio_low",
                                                         "ratio_high"), threads=args.threads, folder=args.out)


if __name__ == "__main__":
    main()
