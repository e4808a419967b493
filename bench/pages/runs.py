"""Tables of whole runs, and of speed and host memory."""

import math

from bench.pages.blocks import Row, Tables, between, figure, fixed, grid, read, source, targets
from qra_bo.report.text import size

SINGLE = {"first_run": "2, 3, 4, 8", "first_run_finer": "2, 3, 4, 5, 6, 8", "stored_53MB": "2, 3, 4, 8"}
"""Files of single runs, and their bits."""


def single() -> str:
    """One run a row, as its ``best.json`` has it."""
    lines = []
    for name, bits in SINGLE.items():
        run = read(f"runs/{name}")
        memory, versus = run["memory"], run["versus_best_uniform"]
        codes = {"gptq": "GPTQ"}.get(run.get("codes"), "round to nearest")
        lines.append([f"{size(memory['budget_bytes'])} {'at the peak' if memory['scope'] == 'peak' else 'stored'}, "
                      f"bits {bits}", codes, fixed(sum(run["bits"]) / len(run["bits"])),
                      fixed(sum(run["ranks"]) / len(run["ranks"]), 1), f"{math.exp(run['loss']):.1f}",
                      _versus(versus), fixed(100 * (math.exp(versus["mean"]) - 1), 1) + " %"])
    files = ", ".join(f"`bench/results/runs/{name}.json`" for name in SINGLE)
    head = ("budget", "codes", "bits", "rank", "test perplexity", "less the best uniform choice, nats", "perplexity")
    return grid(head, lines) + f"\n\n*From {files}.*"


def normal() -> str:
    """Runs of ``effort=normal``."""
    lines = []
    for name, codes in (("normal_runs", "round to nearest"), ("normal_runs_gptq", "GPTQ")):
        lines += [[f"{r['budget']}, {r['scope']}", codes, str(r["seed"]), fixed(r["loss"], 4), _versus(r),
                   figure(r["full_trial_equivalents"]), figure(r["wall_minutes"], 2)] for r in read(name)["rows"]]
    return grid(("budget", "codes", "search seed", "test loss", "less the best uniform choice", "full trials",
                 "minutes"), lines) + source("normal_runs", "normal_runs_gptq")


def speed() -> str:
    """Tokens a second of this trainer and of transformers' Trainer, and the time of a switch."""
    rows = read("evaluation_speed")["rows"]
    return grid(("what", "unit", "median (low to high)"),
                [[r["what"], r["unit"].replace("_", " "),
                  f"{figure(r['median'])} ({figure(r['low'])} to {figure(r['high'])})"] for r in rows]) + \
        source("evaluation_speed")


def load() -> str:
    """Host memory of a 1.1B model in shards, by phase."""
    rows = read("load")["rows"]
    return grid(("run", "phase", "peak of host memory", "over packed weights, largest shard and trial"),
                [[r["label"], r["phase"], size(r["peak_bytes"]), f"{r['share']:.2f}"] for r in rows]) + source("load")


def engine() -> str:
    """Speed of repair and proposals."""
    return targets("engine")


def _versus(r: Row) -> str:
    return between(r["mean"], r["low"], r["high"], 4)


TABLES: Tables = {"single-runs": single, "normal-runs": normal, "speed": speed, "load": load, "engine": engine}
