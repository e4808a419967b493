"""Tables on what predicts the loss of an allocation: sensitivities, early losses, emulators, surrogates."""

from bench.pages.blocks import Row, Tables, figure, fixed, grid, percent, read, signed, source
from qra_bo.utils.numbers import DASH

GOOD = tuple((task, f"good near {budget}") for task in ("plays", "gsm8k") for budget in ("uniform:4,4", "uniform:4,16"))
NEAR = tuple((task, f"near {budget}") for task in ("plays", "gsm8k") for budget in ("uniform:4,4", "uniform:4,16"))
PREDICTORS = {
    "perplexity after quantisation": "perplexity after quantisation",
    "sum of I_q": "sum of rises of the loss",
    "sum of divergences": "sum of KL divergences",
    "sum of believed sensitivity": "sum of combined sensitivities",
    "sum of believed sensitivity, its root and ranks: a line fitted to the band's other folds":
        "line in that sum, its root and the ranks",
    "our surrogate, left one out": "surrogate, left one out"}
"""Names of the results file, and in the terms of the documentation."""


def predictors() -> str:
    """Rank correlation of what is known before training with the loss after it."""
    rows = read("predictors")["rows"]
    found = {(r["task"], r["band"], r["predictor"]): r["spearman"] for r in rows}
    lines = [[title, *(fixed(found.get((*w, name))) for w in (*GOOD, *NEAR))] for name, title in PREDICTORS.items()]
    head = ("predictor", *(f"{task}, {band.removeprefix('good near ')}, better half" for task, band in GOOD),
            *(f"{task}, {band.removeprefix('near ')}, all" for task, band in NEAR))
    return grid(head, lines) + source("predictors")


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


def early() -> str:
    """Rank correlation of the loss early in training with the final one."""
    rows = [r for r in read("emulators")["rows"] if r["what"].startswith("early loss")]
    found = {(r["task"], r["band"], r["steps"]): r["spearman"] for r in rows}
    places = [(task, band) for task in ("plays", "gsm8k")
              for band in dict.fromkeys(r["band"] for r in rows if r["task"] == task)]
    return grid(("table, allocations", "after 6 of 24 steps", "after 12"),
                [[f"{task}, {band}", *(fixed(found.get((task, band, s)), 2) for s in (6, 12))]
                 for task, band in places]) + source("emulators")


def surrogates() -> str:
    """Accuracy of surrogates on real rows, by the number of trials that they know."""
    rows = [r for r in read("search")["rows"] if r["what"] == "surrogate" and r["spearman"] is not None]
    found = {(r["task"], r["budget"], r["evaluations"], r["surrogate"]): r for r in rows}
    names = list(dict.fromkeys(r["surrogate"] for r in rows))
    lines = []
    for task, budget, n in dict.fromkeys(key[:3] for key in found):
        cells = []
        for name in names:
            r = found.get((task, budget, n, name))
            cover = r and r.get("coverage_90")
            cells.append(DASH if r is None else fixed(r["spearman"]) + (f", {percent(cover)}" if cover else ""))
        lines.append([f"{task}, {budget}", str(n), *cells])
    return grid(("table, budget", "trials", *names), lines) + source("search")


def choosing() -> str:
    """Regret of the winner by the rule that chose it."""
    rows = [r for r in read("search_evidence")["rows"] if r["what"] == "winner"]
    return grid(("after", "check failed", "by the model", "by measured losses", "by the rule"),
                [[f"{r['after']} proposals", percent(r["check_failed"]),
                  *(fixed(r[k]) for k in ("regret_model", "regret_measured", "regret_rule"))] for r in rows]) + \
        source("search_evidence", note=f"{rows[0]['searches']} searches")


def stopping() -> str:
    """Where searches stop and what going on would have gained, over all arenas and in each."""
    rows = read("search_evidence")["rows"]
    found = [(f"all, `effort.stop={r['least']}`", r) for r in rows if r["what"] == "stop"]
    found += [(f"{r['task']}, {r['emulator']}, {r['budget']}", r) for r in rows if r["what"] == "stop in an arena"]
    end = f"after {found[0][1]['proposals']}"
    return grid(("searches", "noise", "proposals: quartiles", "regret at the stop", end, "gain above the noise"),
                [[name, fixed(r["noise"]), ", ".join(figure(q, 2) for q in r["stops"][1:4]), fixed(r["regret_at_stop"]),
                  fixed(r["regret_at_end"]), percent(r["missed"])] for name, r in found]) + source("search_evidence")


def rounding() -> str:
    """Divergences of all units by format, with activations in bfloat16 and in fp32, and how orders of units agree."""
    rows = read("profile_rounding")["rows"]
    return grid(("format", "divergence, activations in bfloat16", "in fp32", "rank correlation of the units",
                 "of their combined sensitivities"),
                [[f"`{r['format']}`", fixed(r["bfloat16"], 4), fixed(r["float32"], 4), fixed(r["spearman"]),
                  fixed(r["spearman_combined"])] for r in rows]) + source("profile_rounding")


TABLES: Tables = {"predictors": predictors, "profile-rounding": rounding, "emulators": emulators,
                  "early-losses": early, "surrogates": surrogates, "choosing": choosing, "stopping": stopping}
