"""The lowest versions that pyproject.toml allows, one ``name==version`` a line: what ``make test-pins`` installs.

Python's own libraries are all that it uses, as it runs before anything is installed.
"""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(path: Path = PYPROJECT) -> list[str]:
    """Return the pins of all dependencies.

    Raises:
        ValueError: If a dependency states no lowest version.
    """
    pins = []
    for text in tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,.*)?", text)
        if match is None:
            raise ValueError(f"{path}: expected NAME>=VERSION in dependencies, got {text!r}; state the lowest version")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest()))
