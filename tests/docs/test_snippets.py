"""Every command and snippet of README and docs: run at a small effort, or composed where it is long or takes a GPU."""

import importlib.util
import itertools
import pydoc
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import qra_bo
import qra_bo.pipeline.listeners
import qra_bo.pipeline.run
from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.config.overrides import inspect, normalise, options, with_default_model
from qra_bo.runs import build_parser
from qra_bo.runs import main as runs
from tests.executors import work_in_this_process
from tests.export.finished import finish
from tests.report.fixtures import make_events, write_run

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`(python -m qra_bo(?:\.\w+)? [^`]+)`")
PLACEHOLDER = re.compile(r"=(RUN|FILE|FOLDER)\b|\bRUN\b|\.\.\.|list\|show")
SMALL = {"effort.max_full_trials": "2", "fidelity.high": "4", "fidelity.low": "2", "confirm.seeds": "2",
         "final.steps": "2", "method": "random", "display": "none"}
GIVEN = re.compile(r"outputs/|mine/|build/|export/|.*(NAME|TASK)")
"""Paths that a reader makes or completes, and those within the folder of a run."""
ARGUMENTS = {"bf16", "dense", "gsm8k", "optimizers", "searcher", "trust_remote_code"}
"""Arguments of functions, of trainers and of tools of bench/, which look like keys of the configuration."""
FINISHED = "outputs/finished"
"""The finished run that pages load."""
RUNS_AT_ONCE = ("oracle=synthetic", "task=memory", "task=report")
"""What commands hold that are really run; the others are composed and checked, which finds wrong keys and values."""


def blocks(language: str) -> list[Any]:
    found = [pytest.param(page, code, id=f"{page.relative_to(ROOT)}:{i}") for page in PAGES
             for i, (name, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))) if name == language]
    return found


def lines(code: str) -> Iterator[list[str]]:
    """Every command of a shell block, in words, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.fixture(name="there", autouse=True)
def make_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the docs speak of, on a machine that says it has GPUs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(f'{{"question": "a", "answer": "b{i}"}}\n' for i in range(10)))
    (tmp_path / "questions.jsonl").write_text('{"question": "a", "choices": ["b", "c"], "answer": "b"}\n')
    (tmp_path / "outputs").mkdir()
    for name in ("bench", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = dict(reversed(FENCE.findall((ROOT / "docs" / "research" / "objective.md").read_text(encoding="utf-8"))))
    (tmp_path / "mine" / "oracle").mkdir(parents=True)
    (tmp_path / "mine" / "oracle" / "mine.yaml").write_text(own["yaml"])
    (tmp_path / "mine.py").write_text(own["python"])  # the first of the page: a class
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    for module in (qra_bo.pipeline.run, qra_bo.pipeline.listeners):  # drawing has tests of its own
        monkeypatch.setattr(module, "write_report", lambda folder: [])
    return tmp_path


def smaller(overrides: list[str]) -> list[str]:
    """With the least effort in every key that is not given."""
    keys = {o.lstrip("+").split("=")[0].removesuffix("._target_") for o in overrides}
    if "task=memory" in overrides or "task=report" in overrides:
        return overrides
    return [*overrides, *(f"{key}={value}" for key, value in SMALL.items() if key not in keys)]


def run_or_compose(overrides: list[str], there: Path) -> None:
    if any(o.startswith("--") and o != "--multirun" for o in overrides):
        try:
            status: Any = main(overrides)
        except SystemExit as end:  # help ends the process
            status = end.code
        assert status in (0, None), overrides
    elif any(mark in overrides for mark in RUNS_AT_ONCE):
        out = next((o.removeprefix("out=") for o in overrides if o.startswith("out=")), "")
        if "task=report" in overrides and not any((there / out).rglob("trials.jsonl")):
            write_run(there / out / ("" if out.count("/") else "one"), make_events())
        assert main(smaller(overrides)) == 0, overrides
    elif "--multirun" in overrides:  # launchers are packages of their own
        own = [o for o in overrides if not o.startswith(("--", "hydra/", "hydra."))]
        assert not inspect(with_default_model(normalise(own)), sweep=True)[1]
    else:
        load_config(overrides)


def check(words: list[str], there: Path) -> None:
    words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z]+=", word), words))
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert all(w in targets for w in words[1:] if "=" not in w), words
    elif words[:3] == ["python", "-m", "qra_bo"]:
        run_or_compose(words[3:], there)
    elif words[:3] == ["python", "-m", "qra_bo.runs"]:
        given = build_parser().parse_args(words[3:])
        for folder in [*getattr(given, "folders", []), *([given.folder] if words[3] == "show" else [])]:
            if not folder.exists():
                write_run(there / folder, make_events())
        # The journal of a finished run is here, its model is not.
        assert runs(words[3:]) == (2 if words[3] == "chat" else 0)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, words
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {e for w in words[2:] for e in re.findall(r"\[(\w+)\]", w)} <= set(extras), words
    elif words[0] == "sbatch":
        check([w for w in shlex.split(words[-1]) if w != "exec"], there)
    else:
        pytest.fail(f"no test for {words}")


@pytest.mark.parametrize(("page", "code"), blocks("sh"))
def test_commands(page: Path, code: str, there: Path) -> None:
    for words in lines(code):
        check(words, there)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_within_the_text(page: Path, there: Path) -> None:
    for command in INLINE.findall(page.read_text(encoding="utf-8")):
        if not PLACEHOLDER.search(command):
            check(shlex.split(command.replace("\n", " ")), there)


@pytest.mark.parametrize("page", sorted({p.values[0] for p in blocks("python")}),
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_python(page: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [str(param.values[1]) for param in blocks("python") if param.values[0] == page]
    if any(FINISHED in code for code in codes):
        finish(there / FINISHED, ("sym4-g64", "sym2-g64", "fp16", "sym8-g64"), (1, 4, 2, 3), "quantizer.rounding=rtn")
    work_in_this_process(monkeypatch)
    real = qra_bo.search
    monkeypatch.setattr(qra_bo, "search", lambda overrides: real(smaller(overrides)))
    names: dict[str, Any] = {"__name__": "snippet"}
    for code in codes:
        exec(compile(code, str(page), "exec"), names)


def test_files_and_modules_that_a_page_names_exist() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        assert [f"{path}::{name}" for path, name in re.findall(r"`([\w/]+\.py)::(?:\w+\.)?(\w+)`", text)
                if not re.search(rf"^ *(def|class) {name}\b", (ROOT / path).read_text("utf-8"), re.M)] == [], page
        assert [path for path in re.findall(r"`([\w.-]+/[\w./-]+\.\w+)`", text)
                if not GIVEN.match(path) and not (ROOT / path).exists()] == [], page
        assert [module for module in set(re.findall(r"python -m ([\w.]*\w)", text))
                if importlib.util.find_spec(module) is None] == [], page
        for name in re.findall(r"^::: ([\w.]+)$", text, re.M):
            assert pydoc.locate(name) is not None, name


def test_keys_within_the_text_are_in_the_schema() -> None:
    for page in PAGES:
        keys = {key for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
                for key in re.findall(r"(?:^|[ \"+])([a-z][\w.]*)=", code)}
        assert sorted(key for key in keys - ARGUMENTS if not key.startswith(("table1.", "hydra."))
                      and key not in options() and inspect([f"{key}=1"], sweep=False)[1]) == [], page
