"""All tables by the name that pages ask for, except those of the comparison of methods (``comparison``)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from bench.pages import answers, comparison
from bench.pages.blocks import (
    Row,
    Tables,
    between,
    cell,
    figure,
    fixed,
    grid,
    percent,
    read,
    source,
    targets,
)
from qra_bo.memory.budget import format_size
from qra_bo.utils.formatting import DASH

Cells = Mapping[str, str | Callable[[Row], str]]
ARENAS = tuple((task, emulator, budget) for task in ("plays", "gsm8k") for budget in ("uniform:4,4", "uniform:4,16")
               for emulator in ("boosted", "network"))
NAMES = {"published": "AutoQRA as published", "uniform": "uniform choices alone"}
PARTS: Mapping[str, str] = {
    "qra_bo without sensitivities": "sensitivities",
    "qra_bo without prior designs": "first proposals from sensitivities",
    "qra_bo by the loss's rise": "combined sensitivity (the rise of the loss instead)",
    "qra_bo by divergence": "combined sensitivity (the KL divergence instead)", "qra_bo without the warp": "the warp",
    "qra_bo by the least loss seen": "recommendation by posterior mean (the least loss instead)",
    "qra_bo by the posterior mean": "posterior samples (the posterior mean instead)",
    "qra_bo with one draw": "several posterior samples (one instead)", "qra_bo without the residual": "the residual",
    "qra_bo reduced": "first proposals, warp, residual and all samples but one together"}
"""What each variant of the default method lacks."""


def columns(name: str, cells: Cells, where: Callable[[Row], bool] = lambda row: True) -> str:
    """Return a table with a line for each row of a results file: by heading, a key of the rows or a cell's text."""
    return grid(list(cells), [[cell(row.get(of)) if isinstance(of, str) else of(row) for of in cells.values()]
                              for row in read(name)["rows"] if where(row)]) + source(name)


def of(key: str, write: Callable[..., str], *options: int) -> Callable[[Row], str]:
    """Return what writes the value of a key; an en dash where a row has none."""
    return lambda row: DASH if row.get(key) is None else write(row[key], *options)


def interval(key: str) -> Callable[[Row], str]:
    """Return what writes the difference with its interval that a key holds."""
    def write(row: Row) -> str:
        found = row[key]
        return between(found["mean"], found["low"], found["high"], 4) if found else "the same or none"
    return write


def sums(name: str, keys: Sequence[str], counts: Sequence[str]) -> str:
    """Return a table of counts summed over the rows with equal keys, and over all."""
    rows, groups = read(name)["rows"], dict[tuple[str, ...], list[Row]]()
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    groups["all", *[""] * (len(keys) - 1)] = rows
    return grid((*keys, *counts), [[*key, *(cell(sum(row[count] for row in some)) for count in counts)]
                                   for key, some in groups.items()]) + source(name)


def plain(name: str) -> str:
    """Return a method's name in the terms of the documentation."""
    return NAMES.get(name, name.replace("believed sensitivity", "combined sensitivity"))


def regret() -> str:
    """Median final regret of every method in every arena, the least mean first."""
    found: dict[str, dict[tuple[str, ...], Row]] = {}
    for r in read("search")["rows"]:
        if r["what"] == "search" and r["kind"] not in ("ablation", "transfer"):
            found.setdefault(r["method"], {})[r["task"], r["emulator"], r["budget"]] = r

    def mean(rows: Mapping[tuple[str, ...], Row], key: str, task: str = "") -> float:
        values = [float(r[key]) for r in rows.values() if r["task"] == task or not task]
        return sum(values) / len(values)

    return grid(("method", *(f"{t}, {b}, {e}" for t, e, b in ARENAS), "CPU s", "refused, plays", "refused, gsm8k"), [
        [plain(name), *(fixed(rows[a]["regret"]) for a in ARENAS), figure(mean(rows, "cpu_seconds"), 2),
         *(fixed(mean(rows, "refused", task), 1) for task in ("plays", "gsm8k"))]
        for name, rows in sorted(found.items(), key=lambda item: mean(item[1], "regret"))]) + source("search")


def against(head: str, names: Mapping[str, str] | None = None) -> str:
    """Final regret of other methods (by default all) less that of ours, over all arenas of a text."""
    found = {(r["task"], r["method"]): r for r in read("search")["rows"] if r["what"] == "against qra_bo"
             and r["emulator"] == "all" and (names or r["kind"] not in ("ablation", "transfer"))}
    shown = names or {m: plain(m) for m in sorted(dict.fromkeys(m for _, m in found),
                                                  key=lambda m: float(found["plays", m]["mean"]))}

    def difference(row: Row | None) -> str:
        return "not run" if row is None else between(row["mean"], row["low"], row["high"])

    return grid((head, "plays", "GSM8K"), [[title, *(difference(found.get((task, m))) for task in ("plays", "gsm8k"))]
                                           for m, title in shown.items()]) + source("search")


def ablations() -> str:
    """The published search without each of its parts, on both texts and on planted landscapes."""
    names = ("ablations_plays", "ablations_gsm8k", "ablations")
    found = [{r["variant"]: r for r in read(name)["rows"] if "median_proposed_regret" in r} for name in names]
    order = sorted(found[0], key=lambda v: found[0][v]["median_proposed_regret"] or 1.0)
    return grid(("variant", "plays", "GSM8K", "planted landscapes"), [
        [f"{found[0][v]['what']} (`{v}`)", *(figure(f.get(v, {}).get("median_proposed_regret")) for f in found)]
        for v in order]) + source(*names)


def emulators() -> str:
    """Rank correlation of the emulators' predictions with the measured loss of held-out rows."""
    found: dict[tuple[str, str], list[Row]] = {}
    for r in read("emulators")["rows"]:
        if r["steps"] == 24 and r["what"].startswith("held-out"):
            found.setdefault((r["task"], r["band"]), []).append(r)
    return grid(("table, allocations", "number", "boosted", "network", "ceiling by noise"), [
        [f"{task}, {band}", cell(both[0]["n"]), *(fixed(r["spearman"], 3) for r in both), fixed(both[0]["ceiling"], 3)]
        for (task, band), both in found.items()]) + source("emulators")


def length(result: str) -> str:
    """What is found for the final length and for that of a trial, after whole trainings on unseen seeds; of searches,
    with what they spent. Rows are those of a study with two opponents: the best uniform choice, and the find for a
    trial's length."""
    def differences(row: Row) -> Iterator[str]:
        before = list(row["minus"])
        before = before[:before.index(row["name"])] if row["name"] in before else before
        return (interval(name)(row["minus"]) if name in before else "" for name in row["minus"])

    rows = read(result)["rows"]
    searched = any("equivalents" in r for r in rows)
    return grid(("text", "stored", "steps", "allocation", *(["full trials spent"] if searched else []), "bits", "rank",
                 "seeds", "test loss", "less the best uniform choice", "less that for 24 steps"), [
        [r["text"], r["label"], str(r["steps"]), r["name"],
         *([fixed(r["equivalents"], 1) if "equivalents" in r else ""] if searched else []), fixed(r["bits"]),
         fixed(r["rank"], 1), str(r["seeds"]), fixed(r["loss"], 4), *differences(r)] for r in rows]) + source(result)


def choices(name: str) -> str:
    """What simple choices and predicted mixes reach within each limit; of draws, the best and the worst one."""
    def spread(row: Row) -> str:
        return fixed(row["loss"], 3) + (f" ({fixed(min(row['of_draws']), 3)} to {fixed(max(row['of_draws']), 3)})"
                                        if row["of_draws"] else "")

    found = read(name)["rows"]
    return grid(("text", "stored", "steps", "choice", "code bits", "rank", "seeds", "test loss", "less the rule",
                 "less the mean of the draws"), [
        [r["text"], r["limit"], str(r["steps"]), r["choice"], fixed(r["bits"]), fixed(r["rank"], 1), str(r["seeds"]),
         spread(r), *(("" if r[d] is None else between(r[d]["mean"], r[d]["low"], r[d]["high"]))
                      for d in ("less_rule", "less_draws"))] for r in found]) + source(name)


def _small(value: float) -> str:
    return figure(value, 2) if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _range(row: Row) -> str:
    return f"{figure(row['median'])} ({figure(row['low'])} to {figure(row['high'])})"


def _kind(name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row["kind"] == name)


def _seconds(milliseconds: float) -> str:
    return figure(milliseconds / 1000)


EXPORTS: Cells = {
    "program": "consumer", "version": "version", "logits": "variant", "tokens": "tokens",
    "largest difference": of("largest", _small), "mean": of("mean", _small), "KL divergence": of("kl", _small),
    "file": of("file_bytes", format_size), "load, s": of("load_seconds", fixed, 1)}
DRIVER: Cells = {
    "what": "what", "trials": "evaluations", "CPU s": "cpu_seconds", "trials a CPU s": "evaluations_per_second",
    "journal": of("journal_bytes", format_size), "memory": of("memory_bytes", format_size),
    "workers busy": of("utilisation", percent), "simulated hours": "simulated_hours"}
PROPOSALS: Cells = {"trials known": "evaluations", "pending": "pending", "median s": of("proposal_ms", _seconds),
                    "longest s": of("longest_ms", _seconds)}
TRACES: Cells = {
    "decoder": "what", "settings": "tuples", "least error": of("least", percent, 2), "median": of("median", percent, 2),
    "95th percentile": of("p95", percent, 2), "largest": of("most", percent, 2),
    "within 0 to 3 %": of("inside", percent)}
REAL_STEPS: Cells = {"run": "what", "measured bytes": "measured_bytes", "predicted bytes": "predicted_bytes",
                     "error": of("error", percent, 3), "error of the trace": of("trace_error", percent, 3)}
ABLATED: Cells = {"variant": "what", "test loss": of("test_loss", fixed, 4),
                  "less the best uniform choice": interval("minus_uniform"),
                  "its own best less the full method's": interval("proposed_minus_full")}
LOAD: Cells = {"run": "label", "phase": "phase", "peak of host memory": of("peak_bytes", format_size),
               "over packed weights, largest shard and trial": of("share", fixed)}
SPEED: Cells = {"what": "what", "unit": of("unit", lambda unit: str(unit).replace("_", " ")),
                "median (low to high)": _range}
TABLES: Tables = {
    "comparison": comparison.overview, "comparison-rows": comparison.rows,
    "searches": regret, "searches-against": partial(against, "method"),
    "searches-parts": partial(against, "without", PARTS), "ablations": ablations,
    "ablations-real": partial(columns, "ablations_finetune", ABLATED, lambda row: "test_losses" in row),
    "emulators": emulators, **{f"length-{how}": partial(length, f"length_{how}") for how in ("predicted", "searched")},
    "engine": partial(targets, "engine"), "load": partial(columns, "load", LOAD),
    "speed": partial(columns, "evaluation_speed", SPEED), "exports": partial(columns, "exports", EXPORTS),
    "faults": partial(columns, "faults", {k: k for k in ("fault", "tries", "good", "outcome", "oracle")}),
    "corruption": partial(sums, "fault_corruption", ("damage",), ("cases", "failures")),
    "signals": partial(columns, "signals", {k: k for k in ("oracle", "disturbance", "tries", "good")}),
    "ray": partial(columns, "ray", {"what": "what", "trials": "evaluations", "seconds": "seconds", "tries": "tries",
                                    "good": "good"}),
    "fuzz": partial(sums, "fuzz", ("parser",), ("executions", "findings")),
    "driver": partial(columns, "scale", DRIVER, lambda row: "workers" in row),
    "proposals": partial(columns, "scale", PROPOSALS, lambda row: "pending" in row),
    "memory-traces": partial(columns, "memory", TRACES, _kind("summary")),
    "memory-real": partial(columns, "memory", REAL_STEPS, _kind("real")),
    "choices": partial(choices, "simple_choices"), "draws": partial(choices, "simple_draws"),
    **{f"answers-{what}": partial(answers.table, f"answers_{what}") for what in ("size", "steps")},
    "memory-allocator": partial(targets, "memory_allocator")}
