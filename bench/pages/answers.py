"""Finished runs on the same test text and the same questions, one of them the reference.

    python -m bench.pages.answers NAME 'QLoRA=RUN' '3 bits=RUN' --questions FILE
    python -m bench.pages.answers NAME QLoRA '2 bits=RUN' --questions FILE      (QLoRA's row stays as it is)

Each run was trained (``task=finetune``); those that answered FILE.jsonl (``task=evaluate``) have a share of right ones.
Writes losses by sequence and all answers to ``bench/results/NAME.json``, and ten right beside ten wrong answers of the
last run to ``NAME.md`` there; ``python -m bench.pages`` makes the table from the first. The first run is the reference.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.pages.blocks import between, fixed, grid, read, signed, source
from bench.report import RESULTS, machine, publish
from qra_bo.finetune.evaluation import Answer
from qra_bo.memory.budget import format_size
from qra_bo.memory.formats import parse_format
from qra_bo.study.intervals import text_interval
from qra_bo.tasks.answers import AnswerFile, interval, paired
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.formatting import DASH

METRIC, SHOWN = "exact_match", 10
HEAD = ("choice", "stored", "code bits", "rank", "steps", "test loss", "less the first", "right", "95 %",
        "less the first, points")
Row = Mapping[str, Any]


def collect(label: str, folder: Path, task: str) -> list[Row]:
    """Return the row of a run and, where its base was asked too, that of the untuned base.

    Raises:
        OutputError: If the folder holds no finished run.
        ConfigError: If its bytes are not of stored memory.
    """
    events = {e["event"]: e for e in map(json.loads, (folder / "trials.jsonl").read_text("utf-8").splitlines())}
    if (scope := events["measured"]["scope"]) != "stored":
        raise ConfigError(f"{folder} measured bytes of scope {scope}; rows need those of memory.scope=stored")
    chosen, final = events["measured"]["allocation"], events["final"]
    facts = {"stored": events["measured"]["measured_bytes"], "rank": fmean(chosen["ranks"]),
             "bits": fmean(parse_format(f).bits for f in chosen["formats"]), "git": events["provenance"]["git"]}
    sides = ((label, "", final["kept_step"], final), (f"{label}, untuned", "untuned", 0, events["untuned"]))
    return [{"choice": name, "steps": steps, **facts, "loss": event["loss"], "sequences": event["sequences"],
             "answers": [asdict(answer) for answer in asked.answers]}
            for name, variant, steps, event in sides
            if (asked := AnswerFile.of_run(folder, task, variant)).answers or not variant]


def table(name: str) -> str:
    """Return the table of a page: every run, and its difference from the first in loss and in right answers."""
    rows = read(name)["rows"]
    first, lines = rows[0], []
    for row in rows:
        mine, theirs = ([Answer(**answer) for answer in r["answers"]] for r in (row, first))
        pair, loss = paired(mine, theirs, METRIC), text_interval(row["sequences"], first["sequences"])
        low, high = interval(pair.value, pair.questions) if pair.questions else (0.0, 0.0)
        points = [100 * value for value in (pair.mean, pair.low, pair.high)]
        lines.append([
            row["choice"], format_size(row["stored"]), fixed(row["bits"]), fixed(row["rank"], 1), str(row["steps"]),
            fixed(row["loss"], 3), "" if row is first or loss is None else between(loss.mean, loss.low, loss.high),
            *([DASH] * 3 if not pair.questions else (
                f"{round(pair.value * pair.questions)} of {pair.questions}", f"{100 * low:.0f} to {100 * high:.0f} %",
                "" if row is first else "{} ({} to {})".format(*(signed(value, 0) for value in points))))])
    return grid(HEAD, lines) + source(name)


def beside(row: Row) -> str:
    """Return ten right beside ten wrong answers as Markdown, texts as they are."""
    answers = [Answer(**answer) for answer in row["answers"]]
    parts = [f"# Answers of {row['choice']}", "The first ten that are right, and the first ten that are wrong."]
    for head, good in (("Right", 1), ("Wrong", 0)):
        parts.append(f"## {head}")
        for number, a in enumerate([a for a in answers if a.right[METRIC] == good][:SHOWN], 1):
            texts = ((f"### {number}", a.prompt), ("*Wanted:*", a.target), ("*Written:*", a.answer))
            parts += [f"{what}\n\n~~~text\n{text.strip()}\n~~~" for what, text in texts]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Read the runs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the results")
    parser.add_argument("runs", nargs="+", metavar="LABEL[=RUN]", help="the reference first; no RUN: of the results")
    parser.add_argument("--questions", required=True, metavar="FILE", help="their file, without its ending")
    given = parser.parse_args()
    pairs = [text.partition("=") for text in given.runs]
    kept = {} if all(run for _, _, run in pairs) else {row["choice"]: row for row in read(given.name)["rows"]}
    if unknown := [label for label, _, run in pairs if not run and label not in kept]:
        parser.error(f"{unknown} have no RUN and are not in bench/results/{given.name}.json, which has {[*kept]}")
    rows = list[Row]()
    for label, _, run in pairs:
        rows += collect(label, Path(run), given.questions) if run else [kept[label]]
    publish(given.name, [], rows, ["choice", "stored", "bits", "rank", "steps", "loss"],
            made={"git": rows[0]["git"], "machine": machine()})
    if (last := [row for row in rows if row["steps"]][-1])["answers"]:
        (RESULTS / f"{given.name}.md").write_text(beside(last), encoding="utf-8")


if __name__ == "__main__":
    main()
