"""What CONTRIBUTING.md names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_named_functions_and_paths_exist() -> None:
    for path, name in set(re.findall(r"`([\w/]+\.py)::(\w+)", TEXT)):
        assert re.search(rf"^(class|def) {name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name
    paths = set(re.findall(r"`((?:qra_bo|surrogates|bench|tests|conf|docs)/[\w/.]*)", TEXT))
    assert [path for path in paths if not (ROOT / path).exists() and "NAME" not in path] == []
