"""Tables of the length study and of the models that predict a longer training."""

import re
from collections.abc import Mapping
from math import exp
from statistics import fmean
from typing import Any

from bench.pages.blocks import Tables, between, figure, fixed, grid, percent, read, source, unless_missing
from qra_bo.searchers.structured.rates import NAMES

STUDY, MODEL, WORTH, OPTIMA = "length/length", "length_model", "worth", "length_rates"
PREDICTED, SEARCHED, PROMOTION = "length_predicted", "length_searched", "length_promotion"
PROMPT_LETTERS = 120
COMMAND = "python -m bench.length"


def effects() -> str:
    """Allocations after 240 steps at one training seed."""
    rows = [r for r in read(STUDY)["curves"] if r["loss"] is not None]
    steps = sorted({r["steps"] for r in rows})
    names = dict.fromkeys(r["name"] for r in rows)
    return grid(("allocation", "bits", "rank", "stored MB", *(f"{n} steps" for n in steps)), [
        [name.replace(", 54 MB stored", ""), fixed(of[0]["average_bits"]), fixed(of[0]["average_rank"], 1),
         fixed(of[0]["stored_bytes"] / 1e6, 1), *(_loss(of, n) for n in steps)]
        for name in names if (of := [r for r in rows if r["name"] == name])]) + \
        f"\n\n*From `bench/results/{STUDY}.json`.*"


def seeds() -> str:
    """Test losses on unseen seeds, of a comparison whose find has two of them."""
    rows = read(STUDY)["rows"]
    places = dict.fromkeys(_place(r) for r in rows if r["minus_best_uniform"] is not None)
    return grid(("text", "within", "steps", "tokens", "allocation", "learning rate", "seeds", "perplexity", "test loss",
                 "less the best uniform choice"), [
        [r["task"], r["limit"], str(r["steps"]), f"{r['tokens']:,}", r["name"].replace(f", {r['limit']}", ""),
         f"{r['learning_rate']:g}", str(len(losses)), fixed(exp(fmean(losses)), 1), fixed(fmean(losses), 4),
         "" if (d := r["minus_best_uniform"]) is None else between(d["mean"], d["low"], d["high"], 4)]
        for r in rows if _place(r) in places and (losses := [x for x in r["test_losses"] if x is not None])]) + \
        f"\n\n*From `bench/results/{STUDY}.json`.*"


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["limit"], row["steps"]


def _loss(rows: list[Mapping[str, Any]], steps: int) -> str:
    return fixed(next((r["loss"] for r in rows if r["steps"] == steps), None), 4)


def rates() -> str:
    """Exchange rates after every number of steps."""
    rows = [r for r in read(MODEL)["rows"] if (r["part"], r["data"]) == ("exchange rates", "plays, table of curves")]
    return grid(("steps", "allocations", *NAMES), [
        [str(r["step"]), str(r["allocations"]), *(_with_error(r, name) for name in NAMES)] for r in rows])


def exponents() -> str:
    """Exponents that carry losses to longer trainings."""
    rows = [r for r in read(MODEL)["rows"] if r["part"] == "exponents"]
    return grid(("fitted to", "allocations", "cost of few bits", "value of rank"), [
        [_short(row["data"]), str(row["allocations"]), *(f"{fixed(row[key])} ± {fixed(row[f'{key}_se'])}"
                                                 for key in ("damage", "rank"))] for row in rows])


def _with_error(row: Mapping[str, Any], name: str) -> str:
    return figure(None) if row[name] is None else f"{figure(row[name], 2)} ± {figure(row[f'{name}_se'], 2)}"


def _short(data: str) -> str:
    """Return a name without its split and seed."""
    return re.sub(r", validation, seed \d+", "", data)


def predictions() -> str:
    """How well models predict the end of a training from its beginning, each allocation of a table left out in turn."""
    rows = [r for r in read(MODEL)["rows"] if r["part"] == "prediction" and r["protocol"] == "each in turn"
            and r["rmse"] is not None and "table" in r["data"]]
    cells = {((_short(r["data"]), r["seen"], r["allocations"]), r["model"]): _score(r) for r in rows}
    sets, models = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return grid(("model", *(f"{data}, seen after {seen} ({n})" for data, seen, n in sets)), [
        [model, *(cells[one, model] for one in sets)] for model in models]) + source(MODEL)


def _score(row: Mapping[str, Any]) -> str:
    share = percent(row["over_last_value"])
    error = f"{share} ({fixed(row['rmse'], 4)})" if row["over_last_value"] == 1 else share
    return ", ".join((error, fixed(row["spearman"]), *(fixed(row[key], 4) for key in ("regret", "regret_of_3"))))


def optimal_rates() -> str:
    """The best factor on the learning rate of every allocation and length."""
    rows = [r for r in read(OPTIMA)["rows"] if r["part"] == "rates"]
    return grid(("bits", "rank", "steps", "tried: validation loss", "best", "by_length"), [
        [str(r["bits"]), str(r["rank"]), str(r["steps"]),
         ", ".join(f"{scale:g}: {fixed(loss, 4)}" for scale, loss in r["tried"]), _bracketed(r),
         figure(r["by_length"], 2)] for r in sorted(rows, key=lambda r: (r["bits"], r["rank"], r["steps"]))]) \
        + source(OPTIMA)


def _bracketed(row: Mapping[str, Any]) -> str:
    side = "" if row["inside"] else "at least " if row["best"] == row["tried"][-1][0] else "at most "
    return side + figure(row["best"], 2)


def rate_checks() -> str:
    """The two rules of the learning rate on unseen seeds."""
    rows = [r for r in read(OPTIMA)["rows"] if r["part"] == "check"]
    return grid(("bits", "rank", "steps", "seeds", "inverse_sqrt", "by_length", "by_length less inverse_sqrt"), [
        [str(r["bits"]), str(r["rank"]), str(r["steps"]), str(r["seeds"]), fixed(r["inverse_sqrt_loss"], 4),
         fixed(r["by_length_loss"], 4), between(r["difference"], r["low"], r["high"], 4)] for r in rows])


def finds(result: str) -> str:
    """What is found for the final length and for that of a trial, after whole trainings on unseen seeds; of searches,
    with what they spent."""
    rows = read(result)["rows"]
    searched = any("equivalents" in r for r in rows)
    return grid(("text", "stored", "steps", "allocation", *(["full trials spent"] if searched else []), "bits", "rank",
                 "seeds", "test loss", "less the best uniform choice", "less that for 24 steps"), [
        [r["task"], r["limit"], str(r["steps"]), r["name"],
         *([fixed(r["equivalents"], 1) if "equivalents" in r else ""] if searched else []), fixed(r["bits"]),
         fixed(r["rank"], 1), str(r["seeds"]), fixed(r["loss"], 4),
         *("" if (d := r.get(key)) is None else between(d["mean"], d["low"], d["high"], 4)
           for key in ("over_uniform", "over_short"))]
        for r in rows]) + source(result)


def promotion() -> str:
    """The regret of each rule at each cost, and what one in twenty draws exceeds."""
    rows = read(PROMOTION)["rows"]
    costs = dict.fromkeys(r["cost"] for r in rows)
    cells = {(r["rule"], r["cost"]): f"{fixed(r['regret'], 4)} ({fixed(r['regret_95'], 4)})" for r in rows}
    return grid(("trials", *(f"cost of {cost} runs of 24 steps" for cost in costs)), [
        [rule, *(cells[rule, cost] for cost in costs)] for rule in dict.fromkeys(r["rule"] for r in rows)]) \
        + source(PROMOTION)


def worth() -> str:
    """What differences of the loss are worth, with the beginning of a generated text."""
    rows = read(WORTH)["rows"]
    prompts = {r["task"]: _one_line(r["prompt"][-PROMPT_LETTERS:]) for r in rows}
    return grid(("text", "steps", "model", "perplexity", "next tokens right", "goes on"), [
        [r["task"], str(r["steps"]), r["name"], fixed(r["perplexity"], 1), percent(r["accuracy"], 1),
         _one_line(r["text"])] for r in rows]) + "\n\n" + "\n".join(
        f"Prompt of {task}, its end: {text}\n" for task, text in prompts.items()) + source(WORTH)


def _one_line(text: str) -> str:
    """Return generated text as a cell: in a code span, without what would end it."""
    return f"`{' '.join(text.replace('`', ' ').replace('|', '/').split())}`"


TABLES: Tables = {"length-seeds": unless_missing(STUDY, seeds, f"{COMMAND} --summary"),
                  "length-effects": unless_missing(STUDY, effects, f"{COMMAND} --summary"),
                  "length-rates": unless_missing(MODEL, rates, f"{COMMAND}.model"),
                  "length-exponents": unless_missing(MODEL, exponents, f"{COMMAND}.model"),
                  "length-optima": unless_missing(OPTIMA, optimal_rates, f"{COMMAND}.rates"),
                  "length-checks": unless_missing(OPTIMA, rate_checks, f"{COMMAND}.rates"),
                  "length-predicted": unless_missing(PREDICTED, lambda: finds(PREDICTED), f"{COMMAND}.finds"),
                  "length-searched": unless_missing(SEARCHED, lambda: finds(SEARCHED),
                                                    f"{COMMAND}.finds --effort quick"),
                  "length-promotion": unless_missing(PROMOTION, promotion, f"{COMMAND}.promotion"),
                  "worth": unless_missing(WORTH, worth, "python -m bench.worth --summary"),
                  "length-predictions": unless_missing(MODEL, predictions, f"{COMMAND}.model")}
"""All tables by the name that pages ask for."""
