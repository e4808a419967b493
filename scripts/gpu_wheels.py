"""Wheels to carry to a GPU machine without a package index.

    python -m scripts.gpu_wheels [--list] [--out build/gpu-wheels]

The machine is taken to have torch, transformers, peft, botorch, gpytorch and what they need. Everything else that the
project needs is downloaded in the versions that are installed here, for this Python and platform, and divided into
folders of at most 60 MiB (a call carries 64). A larger wheel is cut into pieces. ``--list`` downloads nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
THERE = ("torch", "transformers", "peft", "botorch", "gpytorch")
IN_ANY_CASE = ("filelock", "pydantic")
"""Small packages that only some versions of those above need."""
LIMIT = 60 * 2**20
"""Bytes of one call, which carries 64 MiB with the names of files and padding."""


def closure(names: Iterable[str]) -> set[str]:
    """Return the installed packages that ``names`` need, themselves among them, by canonical name."""
    found, todo = set[str](), [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # an optional need that is not installed
            continue
        found.add(name)
        todo += [canonicalize_name(r.name) for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def wanted() -> list[str]:
    """Return the packages to carry, as ``name==version``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    all_needed = closure(Requirement(text).name for text in project["dependencies"])
    names = (all_needed - closure(THERE)) | closure(IN_ANY_CASE)
    return [f"{name}=={version(name)}" for name in sorted(names)]


def calls(sizes: Sequence[tuple[str, int]], limit: int = LIMIT) -> list[list[tuple[str, int, int]]]:
    """Divide files into as few calls as first-fit by decreasing size finds.

    Args:
        sizes: Name and bytes of every file.
        limit: Most bytes of a call.

    Returns:
        For every call, pieces as name, first byte and last byte (exclusive).
    """
    pieces = [(name, first, min(first + limit, size)) for name, size in sizes for first in range(0, size, limit)]
    made: list[list[tuple[str, int, int]]] = []
    for piece in sorted(pieces, key=lambda p: p[1] - p[2]):
        room = (call for call in made if sum(last - first for _, first, last in call) + piece[2] - piece[1] <= limit)
        call = next(room, None)
        if call is None:
            made.append([piece])
        else:
            call.append(piece)
    return made


def divide(folder: Path, limit: int = LIMIT) -> list[Path]:
    """Move the wheels of ``folder`` into its sub-folders ``call-1`` and so on; return these."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    made = []
    for number, call in enumerate(calls(sorted(sizes.items()), limit), start=1):
        target = folder / f"call-{number}"
        target.mkdir()
        for name, first, last in call:
            part = "" if (first, last) == (0, sizes[name]) else f".part{first // limit}"
            with (folder / name).open("rb") as reader:
                reader.seek(first)
                (target / f"{name}{part}").write_bytes(reader.read(last - first))
        made.append(target)
    for name in sizes:
        (folder / name).unlink()
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the packages and download nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-wheels", help="folder, made anew")
    args = parser.parse_args(arguments)
    packages = wanted()
    if args.list:
        print("\n".join(packages))
        return
    shutil.rmtree(args.out, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--wheel-dir", str(args.out), *packages], check=True)
    for folder in divide(args.out):
        files = sorted(folder.iterdir())
        print(f"{folder}: {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")
        print("\n".join(f"  {f.stat().st_size / 2**20:8.2f} MiB  {f.name}" for f in files))
    print("On the other machine: join pieces (cat X.whl.part* > X.whl), then install without an index: "
          "python -m pip install --no-index --no-deps *.whl")


if __name__ == "__main__":
    main()
