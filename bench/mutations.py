"""Do the tests notice faults? Faults of one token, drawn by a seed, each run against its package's tests alone.

    python -m bench.mutations --tree CHECKOUT [--out bench/results] [--seed 52] [--count 40]

``CHECKOUT`` is a clean working tree of its own, which is changed and restored. The draw is in proportion to the lines
of each package; docstrings, annotations, decorators, text and what is raised are left alone. A fault meets the tests
that are named after the changed module or import it, until the first failure; then those that were not noticed meet the
package's other tests. The same command goes on where it was stopped, with the faults of the results file.
"""

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Target, machine, publish
from qra_bo.study.provenance import git_commit

PACKAGES = {"qra_bo/study": "tests/study", "qra_bo/memory": "tests/memory", "qra_bo/space": "tests/space",
            "qra_bo/finetune/quantization": "tests/finetune/quantization", "surrogates": "tests/surrogates"}
SWAPS = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "+", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
         "==": "!=", "!=": "==", "+=": "-=", "-=": "+=", "*=": "/=", "and": "or", "or": "and", "True": "False",
         "False": "True", "is": "is not", "in": "not in", "not": "", "min": "max", "max": "min", "any": "all",
         "all": "any", "sum": "max", "break": "continue", "continue": "break", "<<": ">>", ">>": "<<"}
HANGS = 1800
"""Seconds after which the tests count as having noticed by hanging."""


def _left_alone(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            yield node
        yield from (part for part in (getattr(node, "annotation", None), getattr(node, "returns", None),
                                      *getattr(node, "decorator_list", ())) if part is not None)


def faults(path: Path) -> list[dict[str, Any]]:
    """Every fault of a file that still is Python: line, column, and what replaces what."""
    text = path.read_text(encoding="utf-8")
    tree, lines, found, previous = ast.parse(text), text.splitlines(), [], ""
    spans = [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in _left_alone(tree)]  # type: ignore[attr-defined]
    for token in tokenize.generate_tokens(StringIO(text).readline):
        (line, column), old, before = token.start, token.string, previous
        previous = old
        new = str(int(old) + 1) if token.type == tokenize.NUMBER and old.isdecimal() else SWAPS.get(old)
        if new is None:
            continue
        rest = lines[line - 1][column + len(old):].lstrip()
        inside = any(low <= (line, len(lines[line - 1][:column].encode())) < high for low, high in spans)
        if inside or (old, before) == ("not", "is") or (old == "*" and rest.startswith(",")):
            continue
        fault = {"line": line, "column": column, "old": old, "new": new, "source": lines[line - 1].strip()}
        try:
            ast.parse(changed(text, fault))
        except SyntaxError:
            continue
        found.append(fault)
    return found


def changed(text: str, fault: dict[str, Any]) -> str:
    """The text with the fault in it."""
    lines = text.splitlines(keepends=True)
    line, column = lines[fault["line"] - 1], fault["column"]
    lines[fault["line"] - 1] = line[:column] + fault["new"] + line[column + len(fault["old"]):]
    return "".join(lines)


def draw(tree: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """``count`` faults on as many lines: of each package in proportion to its lines, of a line one by chance."""
    files = {package: sorted((tree / package).rglob("*.py")) for package in PACKAGES}
    lines = {package: sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files[package]) for package in files}
    exact = {package: count * lines[package] / sum(lines.values()) for package in files}
    share = {package: int(exact[package]) for package in files}
    for package in sorted(files, key=lambda p: share[p] - exact[p])[:count - sum(share.values())]:
        share[package] += 1
    rng, drawn = random.Random(seed), []
    for package in files:
        by_line: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for file in files[package]:
            for fault in faults(file):
                by_line.setdefault((str(file.relative_to(tree)), fault["line"]), []).append(fault)
        drawn += [{"package": package, "file": key[0], **rng.choice(by_line[key])}
                  for key in rng.sample(sorted(by_line), share[package])]
    return drawn


def noticed(tree: Path, fault: dict[str, Any], near: bool) -> dict[str, Any]:
    """Run tests with the fault in the tree, near or far ones: whether one failed, which, and the seconds."""
    file, folder = tree / fault["file"], PACKAGES[fault["package"]]
    module = ".".join(file.relative_to(tree).with_suffix("").parts)
    groups: list[list[str]] = [[], [], []]  # named after the module, importing it, others: each is collected alone
    for test in sorted((tree / folder).rglob("test_*.py")):
        at = 0 if file.stem in test.stem else 1 if module in test.read_text(encoding="utf-8") else 2
        groups[at].append(str(test.relative_to(tree)))
    right, begin, found = file.read_text(encoding="utf-8"), time.monotonic(), ""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        file.write_text(changed(right, fault), encoding="utf-8")
        for tests in filter(None, groups[:2] if near else groups[2:]):
            done = subprocess.run([*command, *tests], cwd=tree, env=environment, capture_output=True, text=True,
                                  timeout=HANGS, check=False)
            if done.returncode in (1, 2, 3, 4):
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                found = (failed or [f"pytest ended with {done.returncode}"])[0][:160]
                break
    except subprocess.TimeoutExpired:
        found = f"no end in {HANGS} s"
    finally:
        file.write_text(right, encoding="utf-8")
    return {"caught": bool(found), "by": found, "seconds": round(time.monotonic() - begin), "near": near}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where the target is met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="a clean checkout of its own")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of mutations.json")
    parser.add_argument("--seed", type=int, default=52)
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args(arguments)
    tree, earlier = options.tree.resolve(), options.out / "mutations.json"
    known = json.loads(earlier.read_text(encoding="utf-8"))["rows"] if earlier.exists() else []
    rows, least = known or draw(tree, options.seed, options.count), -(-options.count * 9 // 10)
    for near in (True, False):
        for number, row in enumerate(rows):
            if row.get("caught") or row.get("changes_nothing") or row.get("near") is False or (near and "near" in row):
                continue
            rows[number] = {**row, **noticed(tree, row, near)}
            fine = sum(bool(row.get("caught") or row.get("changes_nothing")) for row in rows)
            target = Target("faults that a test notices, or that change nothing", f">= {least} of {options.count}",
                            fine, fine >= least)
            publish("mutations", [target], rows, ["file", "line", "old", "new", "caught", "seconds"],
                    shown=[rows[number]], made={"git": git_commit(tree), "machine": machine(1)}, folder=options.out)
    return int(sum(bool(row.get("caught") or row.get("changes_nothing")) for row in rows) < least)


if __name__ == "__main__":
    raise SystemExit(main())
