"""One export target: what it writes into a run's folder, and the program that loads it again for ``export.check``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_bo.export.comparison import Loader
from qra_bo.export.run import FinishedRun, render


@dataclass(frozen=True, slots=True)
class Target:
    """One export target.

    Args:
        name: As in ``export.targets``.
        path: File or folder that ``write`` makes in the run's folder.
        write: Writes it and returns the files. Raises ``ConfigError`` where the run has something that has no form
            there, with the formats to search instead.
        small: Whether it is written unless targets are named: it copies no weights of the base.
        loader: Program that loads it again; ``None`` for configurations and texts.
        start: Return the command that serves it, from any folder; ``None`` where its files serve nothing.
        refuse_base: Raises ``ConfigError`` for a base model of transformers and its tokenizer that have no form there;
            ``None`` where all have.
    """

    name: str
    path: str
    write: Callable[[FinishedRun], list[Path]]
    small: bool = False
    loader: Loader | None = None
    start: Callable[[FinishedRun], str | None] | None = None
    refuse_base: Callable[[Any, Any], None] | None = None


def text_target(name: str, path: str) -> Target:
    """A target of one text file, made from ``templates/FILE.jinja`` (FILE is the name in ``path``)."""
    def write(run: FinishedRun) -> list[Path]:
        file = run.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(file.name, run), encoding="utf-8")
        return [file]

    return Target(name, path, write, small=True)
