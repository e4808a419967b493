"""Output of every benchmark: targets and rows on the terminal, and the same in ``bench/results``."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import qra_bo
from qra_bo.study.provenance import PACKAGES, git_commit
from qra_bo.utils.version import versions

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to show.

    Args:
        what: What is measured.
        target: What it should be, in words.
        value: What it is; ``None`` where it was not measured.
        met: Whether that is enough; never without a value.
        why: For a target that was not measured, the reason.
    """

    what: str
    target: str
    value: float | None
    met: bool
    why: str = ""

    def __post_init__(self) -> None:
        if self.value is None and (self.met or not self.why):
            raise ValueError(f"{self.what!r} was not measured: it can't be met, and must say why")

    def to_json(self) -> dict[str, Any]:
        """As a results file holds it: a reason only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "why" or value}


def machine(threads: int | None = None) -> dict[str, Any]:
    """The machine and what is installed on it; ``threads`` are those that the measured processes used."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "threads": threads,
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "load_average": round(os.getloadavg()[0], 2), "python": platform.python_version(),
            "platform": platform.platform(), "packages": versions(PACKAGES)}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
                platform.processor())


def publish(name: str, targets: Sequence[Target], rows: Sequence[Mapping[str, Any]], columns: Sequence[str],
            *, shown: Sequence[Mapping[str, Any]] | None = None, threads: int | None = None,
            made: Mapping[str, Any] | None = None, folder: Path = RESULTS) -> Path:
    """Print ``columns`` of the rows (as Markdown) and all targets, and write everything to ``folder``/NAME.json.

    ``shown`` are rows that are printed instead of those written; ``threads`` those of the measured processes; ``made``
    holds ``git`` and ``machine`` of the measurements, where they are not those of this process.
    """
    cells = [[column.replace("_", " ") for column in columns],
             *([_text(row.get(column)) for column in columns] for row in (rows if shown is None else shown))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
             for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for t in targets:
        value = f"not measured ({t.why})" if t.value is None else _text(t.value)
        lines.append(f"{'met' if t.met else 'NOT MET'}: {t.what}: {value}; target {t.target}")
    print("\n".join(lines))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    made = made or {"git": git_commit(Path(qra_bo.__file__).parent), "machine": machine(threads)}
    content = {"name": name, "git": made["git"], "machine": made["machine"],
               "targets": [t.to_json() for t in targets], "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
