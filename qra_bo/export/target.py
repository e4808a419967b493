"""An export target, and text targets that are written from a template."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from qra_bo.export.run import FinishedRun
from qra_bo.report.text import number, signed, size

HINT = ("A hint, not a copy of the run: this tool quantises in its own way (and GPTQ calibrates), so losses and bytes "
        "differ from those in best.json; evaluate again. Servers with fused projections want q, k, v "
        "alike and gate, up alike.")


@dataclass(frozen=True, slots=True)
class Target:
    """One export.

    Args:
        name: As in ``export.targets``.
        path: File or folder that it writes, in the run's folder.
        write: Writes it; returns the files.
        small: Whether it is written unless targets are named: it copies no weights of the base.
        tool: Program that loads it, where ``export.check`` does not.
        package: Import name of that program.
        needs_cuda: Whether that program needs a GPU.
        hint: Whether it is a starting point only, because the tool quantises in its own way.
    """

    name: str
    path: str
    write: Callable[[FinishedRun], list[Path]]
    small: bool = True
    tool: str = ""
    package: str = ""
    needs_cuda: bool = False
    hint: bool = False


def text_target(name: str, path: str, make: Callable[[FinishedRun], str] | None = None, *, tool: str = "",
                needs_cuda: bool = False, hint: bool = False) -> Target:
    """A target of one text file, made by ``make`` or from ``templates/FILE.jinja`` (FILE is the name in ``path``)."""
    def write(run: FinishedRun) -> list[Path]:
        file = run.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(file.name, run) if make is None else make(run), encoding="utf-8")
        return [file]

    return Target(name, path, write, tool=tool, package=name if tool else "", needs_cuda=needs_cuda, hint=hint)


def render(file: str, run: FinishedRun) -> str:
    """Fill in ``templates/FILE.jinja`` for a run; its names reach other syntaxes through quoting filters alone."""
    environment = Environment(loader=PackageLoader("qra_bo.export"), undefined=StrictUndefined, trim_blocks=True,
                              keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"size": size, "number": number, "signed": signed, "json": json.dumps, "shell": shlex.quote,
                            "inline": lambda text: json.dumps(str(text))[1:-1].replace("'", "\\'")}
    return environment.get_template(f"{file}.jinja").render(run=run, best=run.best, hint=HINT)
