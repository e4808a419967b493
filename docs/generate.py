"""Hook of the documentation's build: the reference of every configuration key, read from ``conf/`` as it is, and the
results of the first hour on a GPU."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK, GPU_MARK = "<!-- configuration -->", "<!-- first-gpu-hour -->"
ROOT = Path(__file__).resolve().parent.parent
GROUPS_OF_HYDRA = "hydra"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them."""
    for mark, make in ((MARK, configuration), (GPU_MARK, gpu_results)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


@contextmanager
def from_checkout() -> Iterator[None]:
    """Import from this checkout, from wherever the build was started."""
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))


def gpu_results() -> str:
    """Return a table for every part of the first hour on a GPU."""
    with from_checkout():
        from scripts.first_gpu_hour import TITLES
        from scripts.gpu_hour.results import RESULTS, table
    return table(RESULTS, TITLES)


def configuration() -> str:
    """One table for ``config.yaml`` and one for every option of every group."""
    conf = ROOT / "conf"
    parts = ["## config.yaml", table(conf / "config.yaml")]
    for group in sorted(p for p in conf.iterdir() if p.is_dir() and p.name not in (GROUPS_OF_HYDRA, "__pycache__")):
        parts.append(f"## {group.name}")
        for option in sorted(group.glob("*.yaml")):
            shared = option.stem.startswith("_")
            title = f"{group.name}: shared by several" if shared else f"{group.name}={option.stem}"
            parts += [f"### {title}", table(option, f"{group.name}.")]
    return "\n\n".join(parts)


def change_on_resume(key: str) -> str:
    """Return what another value of a dotted key does to a run that is continued."""
    with from_checkout():
        from qra_bo.config.resume import UNSAID, is_harmless
    if key in UNSAID:
        return "names the run"
    return "may change" if is_harmless(key) else "refused"


def table(path: Path, prefix: str = "") -> str:
    """Keys as on a command line, defaults, comments and what a change does to a continued run, of one file; its first
    line says what it is, after one for Hydra in some.

    ``prefix`` is that of the keys in the whole configuration, where the file is not global. A key without a comment has
    that of the mapping that holds it.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    prefix = "" if lines[0] == "# @package _global_" else prefix
    rows, parents, meanings = [], list[str](), list[str]()
    for line in lines:
        if line.startswith("hydra:"):
            break
        key, separator, rest = line.partition(":")
        if not separator or key.lstrip().startswith(("#", "-")):
            continue
        depth = (len(key) - len(key.lstrip())) // 2
        value, _, comment = rest.partition("  # ")
        parents[depth:], meanings[depth:] = [key.strip().strip('"')], [comment.strip().replace("|", "\\|")]
        if value.strip():
            shown, name = value.strip().replace("|", "\\|"), prefix + ".".join(parents)
            meaning = next((text for text in reversed(meanings) if text), "")
            rows.append(f"| `{name}` | `{shown}` | {meaning} | {change_on_resume(name)} |")
    head = next(line for line in lines if not line.startswith("# @")).removeprefix("# ")
    return f"{head}.\n\n| key | default | meaning | on resume |\n|---|---|---|---|\n" + "\n".join(rows)
