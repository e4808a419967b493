"""Tables of what searches find for a longer training."""

from functools import partial

from bench.pages.blocks import Row, Tables, between, fixed, grid, read, source


def finds(result: str) -> str:
    """What is found for the final length and for that of a trial, after whole trainings on unseen seeds; of searches,
    with what they spent. Rows are those of a study with two opponents: the best uniform choice, and the find for a
    trial's length."""
    rows = read(result)["rows"]
    searched = any("equivalents" in r for r in rows)
    return grid(("text", "stored", "steps", "allocation", *(["full trials spent"] if searched else []), "bits", "rank",
                 "seeds", "test loss", "less the best uniform choice", "less that for 24 steps"), [
        [r["text"], r["label"], str(r["steps"]), r["name"],
         *([fixed(r["equivalents"], 1) if "equivalents" in r else ""] if searched else []), fixed(r["bits"]),
         fixed(r["rank"], 1), str(r["seeds"]), fixed(r["loss"], 4), *_differences(r)] for r in rows]) + source(result)


def _differences(row: Row) -> list[str]:
    names = list(row["minus"])
    before = names[:names.index(row["name"])] if row["name"] in names else names
    return ["" if name not in before else between(*(row["minus"][name][k] for k in ("mean", "low", "high")), 4)
            for name in names]


TABLES: Tables = {f"length-{how}": partial(finds, f"length_{how}") for how in ("predicted", "searched")}
