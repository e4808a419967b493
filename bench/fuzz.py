"""Coverage-guided fuzzing of every parser with libFuzzer (through atheris), from its corpus.

    python -m bench.fuzz [--runs 1000000] [--only PARSER ...]

Each parser has a process of its own. A traceback, a hang (two minutes) or a value that should have been refused ends it
and is kept in ``tests/fuzz/corpus``, where a test replays it for ever. Results are written after every parser;
``--only`` makes some of them again and leaves the others. ``pip install atheris`` (extra ``fuzz``).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Target, publish

ROOT = Path(__file__).resolve().parents[1]
LEAST = 20_000
"""Executions of each parser at least."""
SLOW = {"overrides": 0.03, "configuration": 0.1}
"""Parsers that take a millisecond and more, with their share of an equal part of the runs."""
MODULES = ("qra_bo.memory.budget", "qra_bo.memory.formats", "qra_bo.config.overrides", "qra_bo.config.check",
           "qra_bo.config.rules", "qra_bo.utils.files", "qra_bo.study.journal", "qra_bo.study.state", "qra_bo.trials",
           "qra_bo.sensitivity.profile",
           "qra_bo.finetune.manifest",
           "qra_bo.finetune.data.jsonl", "qra_bo.space.allocation", "qra_bo.pipeline.given",
           "qra_bo.searchers.rates.model")
CHILD = """
import sys, atheris
with atheris.instrument_imports(include={modules!r}):
    from tests.fuzz.targets import PARSERS
atheris.Setup(sys.argv, PARSERS[{name!r}])
atheris.Fuzz()
"""
_DONE = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def share(total: int, least: int, names: Sequence[str]) -> dict[str, int]:
    """Executions of every parser: equal parts, less for the slow ones, and the others make up for it."""
    equal = total / len(names)
    slow = {name: max(least, round(equal * SLOW[name])) for name in names if name in SLOW}
    rest = [name for name in names if name not in SLOW]
    each = max(least, -(-(total - sum(slow.values())) // len(rest)))
    return {name: slow.get(name, each) for name in names}


def fuzz(name: str, runs: int, corpus: Path) -> dict[str, Any]:
    """Run libFuzzer on one parser, so many executions from the inputs in ``corpus``."""
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(modules=list(MODULES), name=name), f"-runs={runs}", "-timeout=120",
             "-max_len=2048", "-rss_limit_mb=4096", "-len_control=10", "-print_final_stats=1", "-seed=1",
             f"-artifact_prefix={corpus}/found-", scratch, str(corpus)], cwd=ROOT, capture_output=True, text=True,
            check=False)
    found = _DONE.findall(done.stderr)
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    ok = done.returncode == 0
    print(f"{name}: {'ok' if ok else f'ended with {done.returncode}: {done.stderr[-3000:]}'}", flush=True)
    return {"parser": name, "executions": int(executed[1]) if executed else 0,
            "edges": int(found[-1][1]) if found else 0, "corpus": len(list(corpus.glob("*"))),
            "seconds": round(time.monotonic() - begin, 1), "findings": 0 if ok else 1}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Publish what was executed until now."""
    total, least = sum(r["executions"] for r in rows), min(r["executions"] for r in rows)
    findings = sum(r["findings"] for r in rows)
    publish("fuzz", [Target("executions in all", ">= 1,000,000", total, total >= 1_000_000),
                     Target("executions of the parser with the fewest", ">= 20,000", least, least >= 20_000),
                     Target("tracebacks, hangs and values that should have been refused", "0", findings, not findings)],
            rows, ["parser", "executions", "edges", "corpus", "seconds", "findings"], threads=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where nothing was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions in all")
    parser.add_argument("--only", nargs="*", help="names of parsers")
    options = parser.parse_args(arguments)
    from tests.fuzz.targets import CORPUS, PARSERS

    earlier = RESULTS / "fuzz.json"
    rows: dict[str, dict[str, Any]] = {}
    if options.only and earlier.exists():
        rows = {r["parser"]: r for r in json.loads(earlier.read_text(encoding="utf-8"))["rows"]}
    planned = share(options.runs, LEAST, list(PARSERS))
    for name in options.only or PARSERS:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        rows[name] = fuzz(name, planned[name], CORPUS / name)
        show(list(rows.values()))
    return int(any(r["findings"] for r in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
