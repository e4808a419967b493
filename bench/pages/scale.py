"""Tables of the driver with a thousand workers, of the engine's speed and of host memory."""

from bench.pages.blocks import Tables, figure, grid, percent, read, source, targets
from qra_bo.report.text import size


def driver() -> str:
    """The driver alone, with proposals at next to no cost."""
    rows = [r for r in read("scale")["rows"] if "workers" in r]
    return grid(("what", "trials", "CPU s", "trials a CPU s", "journal", "memory", "workers busy", "simulated hours"),
                [[r["what"], f"{r['evaluations']:,}", figure(r["cpu_seconds"]), figure(r["evaluations_per_second"]),
                  size(r["journal_bytes"]), size(r["memory_bytes"]), percent(r["utilisation"]),
                  figure(r["simulated_hours"])] for r in rows]) + source("scale")


def proposals() -> str:
    """Time of one proposal of the default method, with a thousand trials pending."""
    rows = [r for r in read("scale")["rows"] if "pending" in r]
    return grid(("trials known", "pending", "median s", "longest s"),
                [[f"{r['evaluations']:,}", f"{r['pending']:,}", figure(r["proposal_ms"] / 1000),
                  figure(r["longest_ms"] / 1000)] for r in rows]) + source("scale")


def load() -> str:
    """Host memory of a 1.1B model in shards, by phase."""
    rows = read("load")["rows"]
    return grid(("run", "phase", "peak of host memory", "over packed weights, largest shard and trial"),
                [[r["label"], r["phase"], size(r["peak_bytes"]), f"{r['share']:.2f}"] for r in rows]) + source("load")


def engine() -> str:
    """Speed of repair and proposals."""
    return targets("engine")


TABLES: Tables = {"driver": driver, "proposals": proposals, "load": load, "engine": engine}
