"""Table of the study of levers."""

from bench.pages.blocks import Row, Tables, between, fixed, grid, read, signed, source, unless_missing
from qra_bo.utils.numbers import DASH

NAME, COMMAND = "levers", "python -m bench.levers --summary"


def levers() -> str:
    """Every lever against what it would replace."""
    rows = [r for r in read(NAME)["rows"] if r["part"] == "lever"]
    return grid(("lever", "text", "within", "steps", "bits", "rank", "validation", "test, less without", "seeds",
                 "profile, CPU s"), [
        [r["lever"], r["task"], r["limit"] or f"{fixed(r['stored_bytes'] / 1e6, 1)} MB stored", str(r["steps"]),
         fixed(r["bits"]), fixed(r["rank"], 1),
         DASH if r["validation_gain"] is None else signed(-r["validation_gain"], 4),
         "the same allocation" if r["same_allocation"] else _difference(r), str(r["seeds"]),
         fixed(r["profile_seconds"], 0)] for r in rows if r["validation_gain"] is not None or r["same_allocation"]]) + \
        source(NAME)


def missing() -> str:
    """Levers that no trial was made for, or too few, by text."""
    rows = [r for r in read(NAME)["rows"] if r["part"] == "lever" and r["validation_gain"] is None
            and not r["same_allocation"]]
    return "\n".join(f"- {text}: {'; '.join(r['lever'] for r in rows if r['task'] == text)}"
                     for text in dict.fromkeys(r["task"] for r in rows))


def profiles() -> str:
    """What a profile costs by granularity."""
    rows = [r for r in read(NAME)["rows"] if r["part"] == "profile"]
    return grid(("granularity", "units", "formats", "sequences", "tokens forward", "CPU seconds",
                 "CPU seconds a unit and format"), [
        [r["granularity"], str(r["units"]), str(r["formats"]), str(r["sequences"]), f"{r['forward_tokens']:,}",
         fixed(r["cpu_seconds"], 0), fixed(r["cpu_seconds"] / r["units"] / r["formats"])] for r in rows]) + source(NAME)


def _difference(row: Row) -> str:
    d = row["minus_base"]
    if d is not None:
        return between(d["mean"], d["low"], d["high"], 4)
    return DASH if row["one_seed"] is None else signed(row["one_seed"], 4)


TABLES: Tables = {"levers": unless_missing(NAME, levers, COMMAND),
                  "levers-missing": unless_missing(NAME, missing, COMMAND),
                  "levers-profiles": unless_missing(NAME, profiles, COMMAND)}
"""All tables by the name that pages ask for."""
