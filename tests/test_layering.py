"""Files stay small; import-linter checks the order of the packages."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_files_stay_small() -> None:
    files = (path for package in ("qra_bo", "surrogates") for path in (ROOT / package).rglob("*.py"))
    assert [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 350] == []
