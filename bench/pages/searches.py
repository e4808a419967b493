"""Tables of searches on tables of real trials, of their emulators, and of ablations."""

from collections.abc import Mapping

from bench.pages.blocks import Row, Tables, between, figure, fixed, grid, read, signed, source, targets
from qra_bo.utils.formatting import DASH

ARENAS = tuple((task, emulator, budget) for task in ("plays", "gsm8k") for budget in ("uniform:4,4", "uniform:4,16")
               for emulator in ("boosted", "network"))
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


def regret() -> str:
    """Median final regret of every method in every arena, the least mean first."""
    found: dict[str, dict[tuple[str, ...], Row]] = {}
    for r in read("search")["rows"]:
        if r["what"] == "search" and r["kind"] not in ("ablation", "transfer"):
            found.setdefault(r["method"], {})[r["task"], r["emulator"], r["budget"]] = r
    lines = []
    for name, rows in sorted(found.items(), key=lambda item: sum(r["regret"] for r in item[1].values())):
        seconds = sum(r["cpu_seconds"] for r in rows.values()) / len(rows)
        lines.append([plain(name), *(fixed(rows[a]["regret"]) for a in ARENAS), figure(seconds, 2),
                      *(_refused(rows, task) for task in ("plays", "gsm8k"))])
    return grid(("method", *(f"{t}, {b}, {e}" for t, e, b in ARENAS), "CPU s", "refused, plays", "refused, gsm8k"),
                lines) + source("search")


def _refused(rows: Mapping[tuple[str, ...], Row], task: str) -> str:
    here = [r["refused"] for r in rows.values() if r["task"] == task]
    return fixed(sum(here) / len(here), 1)


def plain(name: str) -> str:
    """Return a method's name in the terms of the documentation."""
    return {"published": "AutoQRA as published", "uniform": "uniform choices alone"}.get(
        name, name.replace("believed sensitivity", "combined sensitivity"))


def against() -> str:
    """Final regret of every other method less that of ours, over all arenas of a text."""
    found = {(r["task"], r["method"]): r for r in read("search")["rows"] if r["what"] == "against qra_bo"
             and r["emulator"] == "all" and r["kind"] not in ("ablation", "transfer")}
    names = sorted(dict.fromkeys(m for _, m in found), key=lambda m: found["plays", m]["mean"])
    return grid(("method", "plays", "GSM8K"),
                [[plain(m), *(_mean(found.get((task, m))) for task in ("plays", "gsm8k"))] for m in names]) + \
        source("search")


def parts() -> str:
    """Change of the final regret where one part of the default method is taken away."""
    found = {(r["task"], r["method"]): r for r in read("search")["rows"]
             if r["what"] == "against qra_bo" and r["emulator"] == "all"}
    return grid(("without", "plays", "GSM8K"),
                [[part, *(_mean(found.get((task, m))) for task in ("plays", "gsm8k"))]
                 for m, part in PARTS.items()]) + source("search")


def real() -> str:
    """Searches with real fine-tuning."""
    rows = read("search_real")["rows"]
    seeds = sorted({r["seed"] for r in rows if "seed" in r})
    versus = {r["qra_bo_against"]: r for r in rows if "qra_bo_against" in r}
    losses = {(r["method"], r["seed"]): sum(r["test_losses"].values()) / len(r["test_losses"])
              for r in rows if "seed" in r}
    lines = [[plain(m), *(fixed(losses.get((m, s)), 4) for s in seeds),
              _versus(versus[m]) if m in versus else ""]
             for m in dict.fromkeys(m for m, _ in losses)]
    return grid(("method", *(f"search seed {s}" for s in seeds), "qra_bo less it"), lines) + source("search_real")


def efforts() -> str:
    """Regrets of the efforts at their own ends, beside the published search and its peers."""
    content = read("search_efforts")
    found = {(r["task"], r["emulator"], r["budget"]): r for r in content["rows"]}
    lines = []
    for task, emulator, budget in ARENAS:
        r = found[task, emulator, budget]
        knapsacks = (r[f"bits by believed sensitivity{more} at 40"] for more in ("", ", then ranks"))
        lines.append([f"{task}, {budget}, {emulator}", fixed(r["regret"]), fixed(r["first_proposal"]),
                      *(f"{fixed(r[name])} ({figure(r[f'{name}_spent'])})" for name in ("quick", "normal")),
                      fixed(r["search_at_40"]), *map(fixed, knapsacks)])
    return grid(("text, budget, emulator", "instant", "first proposal", "quick (cost)", "normal (cost)", "search at 40",
                 "bits", "bits, then ranks"), lines) + "\n\n" + targets("search_efforts")


def efforts_real() -> str:
    """The efforts with real fine-tuning, each search against its best uniform choice, on the same unseen seeds."""
    rows = read("search_efforts_real")["rows"]
    lines = [[r["limit"], r["effort"], DASH if r["uniform"] is None else str(r["seed"]), fixed(r["equivalents"], 1),
              fixed(sum(r["test_losses"].values()) / len(r["test_losses"]), 4),
              between(r["difference"], r["low"], r["high"], 4)] for r in rows]
    head = ("stored", "effort", "search seed", "cost", "test loss", "less the best uniform choice")
    return grid(head, lines) + "\n\n" + targets("search_efforts_real")


def ablations() -> str:
    """The published search without each of its parts, on both texts and on planted landscapes."""
    names = ("ablations_plays", "ablations_gsm8k", "ablations")
    found = [{r["variant"]: r for r in read(name)["rows"] if "median_proposed_regret" in r} for name in names]
    order = sorted(found[0], key=lambda v: found[0][v]["median_proposed_regret"] or 1.0)
    lines = [[f"{found[0][v]['what']} (`{v}`)", *(figure(f.get(v, {}).get("median_proposed_regret")) for f in found)]
             for v in order]
    return grid(("variant", "plays", "GSM8K", "planted landscapes"), lines) + source(*names)


def ablations_real() -> str:
    """The ablations with real fine-tuning."""
    rows = [r for r in read("ablations_finetune")["rows"] if "test_losses" in r]
    return grid(("variant", "test loss", "less the best uniform choice", "its own best less the full method's"),
                [[r["what"], fixed(r["test_loss"], 4), _versus(r["minus_uniform"]), _versus(r["proposed_minus_full"])]
                 for r in sorted(rows, key=lambda r: r["test_loss"])]) + source("ablations_finetune")


def emulators() -> str:
    """Rank correlation of the emulators' predictions with the measured loss: held out, and of finds of searches."""
    rows = [r for r in read("emulators")["rows"] if r["steps"] == 24 and r["what"].startswith("held-out")]
    found = {(r["task"], r["band"], r["what"].split()[-1]): r for r in rows}
    found |= {(r["task"], f"finds, {r['finds']}", r["emulator"]): r for r in read("emulator_finds")["rows"]}
    lines = []
    for task, band in dict.fromkeys((t, b) for t, b, _ in found):
        both = [found[task, band, family] for family in ("boosted", "network")]
        lines.append([f"{task}, {band}", str(both[0]["n"]), *(fixed(r["spearman"], 3) for r in both),
                      fixed(both[0].get("ceiling"), 3), *map(_error, both)])
    noise = ", ".join(f"{figure(value, 1)} on {task}" for task, value in {r["task"]: r["noise"] for r in rows}.items())
    return grid(("table, allocations", "number", "boosted", "network", "ceiling by noise", "boosted less real",
                 "network less real"), lines) + \
        source("emulators", "emulator_finds",
               note=f"Deviation between training seeds of one allocation, in nats: {noise}")


def _error(row: Row) -> str:
    return f"{signed(row['bias'])}, {fixed(row['sd'], 3)}" if "bias" in row else DASH


def _versus(d: Row | None) -> str:
    return between(d["mean"], d["low"], d["high"], 4) if d else "the same or none"


def _mean(row: Row | None) -> str:
    return "not run" if row is None else between(row["mean"], row["low"], row["high"])


TABLES: Tables = {"searches": regret, "searches-against": against, "searches-parts": parts, "searches-real": real,
                  "searches-efforts": efforts, "searches-efforts-real": efforts_real, "ablations": ablations,
                  "ablations-real": ablations_real, "emulators": emulators}
