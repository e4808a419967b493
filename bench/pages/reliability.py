"""Tables of provoked faults, and of the driver with a thousand workers."""

from collections import Counter

from bench.pages.blocks import Tables, figure, grid, percent, read, source
from qra_bo.report.text import size
from qra_bo.utils.formatting import DASH


def faults() -> str:
    """Faults of machines, disks, clocks and packages."""
    return grid(("fault", "tries", "good", "outcome", "oracle"),
                [[r["fault"], str(r["tries"]), str(r["good"]), r["outcome"], r["oracle"]]
                 for r in read("faults")["rows"]]) + source("faults")


def corruption() -> str:
    """Damaged files by kind of damage."""
    return _sums("fault_corruption", ("damage",), ("damage",))


def syscalls() -> str:
    """System calls that fail, by oracle and error."""
    return _sums("fault_syscalls", ("oracle", "error"), ("oracle", "error"))


def _sums(name: str, keys: tuple[str, ...], head: tuple[str, ...]) -> str:
    cases, failures = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for r in read(name)["rows"]:
        key = tuple(r[k] for k in keys)
        cases[key] += r["cases"]
        failures[key] += r["failures"]
    lines = [[*key, str(n), str(failures[key])] for key, n in cases.items()]
    lines.append(["all", *[""] * (len(keys) - 1), str(cases.total()), str(failures.total())])
    return grid((*head, "cases", "failures"), lines) + source(name)


def signals() -> str:
    """Signals, by oracle."""
    rows = read("signals")["rows"]
    found = {(r["disturbance"], r["oracle"]): f"{r['good']} of {r['tries']}" for r in rows}
    return grid(("disturbance", "good, planted oracle", "good, real oracle"),
                [[d, *(found.get((d, oracle), DASH) for oracle in ("planted", "real"))]
                 for d in dict.fromkeys(r["disturbance"] for r in rows)]) + \
        source("signals")


def ray() -> str:
    """Workers on Ray."""
    lines = []
    for r in read("ray")["rows"]:
        tries = r.get("tries", r.get("evaluations"))
        result = f"{r['good']} of {tries}" if "good" in r else f"{figure(r['seconds'])} s"
        lines.append([r["what"].replace("evaluations", "trials"), result])
    return grid(("what", "result"), lines) + source("ray")


def fuzz() -> str:
    """Executions of every parser under libFuzzer."""
    rows = read("fuzz")["rows"]
    lines = [[r["parser"], f"{r['executions']:,}", str(r["edges"]), str(r["findings"])] for r in rows]
    lines.append(["all", f"{sum(r['executions'] for r in rows):,}", "", str(sum(r["findings"] for r in rows))])
    return grid(("parser", "executions", "edges covered", "findings"), lines) + source("fuzz")


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


TABLES: Tables = {"faults": faults, "corruption": corruption, "syscalls": syscalls, "signals": signals, "ray": ray,
                  "fuzz": fuzz, "driver": driver, "proposals": proposals}
