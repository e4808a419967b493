"""Results of the parts in one JSON file, and their tables. Loads no torch: the documentation is built with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "first_gpu_hour.json"
NOT_MEASURED = "Not measured on a GPU."


class UnfinishedError(Exception):
    """A part that another call has to continue."""


class Results:
    """The results file, rewritten with every row.

    Args:
        path: The JSON file; made at the first row.
        facts: Card and versions, which go into every part.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, dict(facts)
        self.parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}

    def is_done(self, part: str) -> bool:
        """Return whether a part came to its end."""
        return bool(self.parts.get(part, {}).get("done"))

    def begin(self, part: str) -> None:
        """Forget what an earlier call left of a part."""
        self.parts[part] = {**self.facts, "done": False, "rows": []}
        self._write()

    def add(self, part: str, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self.parts[part]["rows"].append(dict(row))
        self._write()

    def end(self, part: str, seconds: float, problem: str | None = None) -> None:
        """Note that a part is done, or why it is not."""
        self.parts[part].update(done=problem is None, seconds=seconds)
        if problem is not None:
            self.parts[part]["problem"] = problem
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps({"name": "first_gpu_hour", "parts": self.parts}, indent=1) + "\n",
                             encoding="utf-8")
        temporary.replace(self.path)


def table(path: Path, titles: Mapping[str, str]) -> str:
    """Return the Markdown of all parts in the order of ``titles`` (titles by part).

    Parts that a file lacks, or that ran on a CPU, say that they were not measured on a GPU.
    """
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    return "\n\n".join(f"### {title}\n\n{_part(parts.get(name))}" for name, title in titles.items())


def _part(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return NOT_MEASURED
    where = f"{NOT_MEASURED} On a CPU:" if part["card"] is None else f"{part['card']}, torch {part['torch']}:"
    state = "" if part["done"] else f" Not finished: {part.get('problem', 'the call was ended')}"
    if not part["rows"]:
        return f"{where}{state or ' no rows.'}"
    columns = list(dict.fromkeys(key for row in part["rows"] for key, value in row.items()
                                 if not isinstance(value, dict)))
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns),
             *([_text(row.get(column)) for column in columns] for row in part["rows"])]
    return f"{where}{state}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
