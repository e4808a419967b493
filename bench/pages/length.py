"""Tables of what searches find for a longer training."""

from functools import partial

from bench.pages.blocks import Tables, between, fixed, grid, read, source


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


TABLES: Tables = {f"length-{how}": partial(finds, f"length_{how}") for how in ("predicted", "searched")}
