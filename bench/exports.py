"""Losses of loaded exports: a table over finished runs whose exports were loaded again.

    python -m qra_bo task=export out=RUN export.check=true      (for each run, with the targets that are wanted)
    python -m bench.exports RUN ...
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Target, publish
from qra_bo.report.data import load_run

NAME, CHECKS = "exports", "export/checks.json"
COLUMNS = ("run", "what", "loaded_by", "difference", "mean", "note")
FAITHFUL = ("manifest and adapter",)
ROUNDED = ("adapter", "adapter of one rank", "merged into the dequantised base", "merged, as written",
           "bitsandbytes 4 and 16 bits, with the adapter")
LARGEST_MEAN = 0.2
"""Mean difference of logits that bfloat16 leaves where the same sums are done in another order."""


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The checks of one run, under a name that says what the run is."""
    header = load_run(folder).header
    name = f"{header.model}, {header.budget_text} {header.scope}, {'/'.join(f.name for f in header.formats)}"
    return [{"run": name, **row} for row in json.loads((folder / CHECKS).read_text(encoding="utf-8"))["rows"]]


def targets_of(rows: Sequence[dict[str, Any]]) -> list[Target]:
    """Whether what should be the same is the same, and what should be near is near."""
    exact = [row["difference"] for row in rows if row["what"] in FAITHFUL]
    near = [row["mean"] for row in rows if row["what"] in ROUNDED and row["mean"] is not None]
    missing = "no run was given that holds such an export"
    return [Target("largest difference of logits after qra_bo.load", "0", max(exact, default=None),
                   bool(exact) and max(exact) == 0, "" if exact else missing),
            Target("largest mean difference of logits of exports that compute the same up to rounding",
                   f"<= {LARGEST_MEAN}", max(near, default=None), bool(near) and max(near) <= LARGEST_MEAN,
                   "" if near else missing),
            Target("exports loaded by vLLM, GPTQModel and axolotl", ">= 1 each", None, False,
                   "they need a GPU, and this was run without one")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    rows = [row for folder in parser.parse_args(arguments).runs for row in rows_of(folder)]
    publish(NAME, targets_of(rows), rows, COLUMNS)


if __name__ == "__main__":
    main()
