"""Files are replaced whole, whatever becomes of the temporary ones."""

from pathlib import Path

import pytest

from qra_bo.utils.files import follow_umask, replace_text


@pytest.fixture(name="nothing_is_removed")
def break_unlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing a file that is there, or may be, fails."""
    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists() or not missing_ok:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", unlink)


@pytest.mark.usefixtures("nothing_is_removed")
def test_failed_removal_of_a_temporary_file_fails_nothing(tmp_path: Path) -> None:
    replace_text(tmp_path / "x", "old")
    replace_text(tmp_path / "x", "new")
    follow_umask(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "new"


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(tmp_path / "x", "old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(tmp_path / "x", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]
