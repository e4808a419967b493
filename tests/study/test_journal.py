"""The journal keeps every line it promised and says what it lost."""

import errno
import fcntl
import os
import signal
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from qra_bo.study.journal import LOCK_NAME, Journal, checksum, is_locked, read_journal, run_lock, session_seconds
from qra_bo.utils.errors import ContractError, JournalError, OutputError

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
HEADER = {"schema_version": 3, "config": {"a": {"b": 1}}, "config_sha256": "x"}


def write(folder: Path, n: int = 3) -> Path:
    with Journal(folder) as journal:
        journal.append("header", HEADER)
        for i in range(n):
            journal.append("warning", {"message": f"number {i} é"})
    return folder / "trials.jsonl"


def test_checksum_is_crc32_of_sorted_text_without_the_crc() -> None:
    expected = format(zlib.crc32(b'{"a":"x","b":1}'), "08x")
    assert checksum({"b": 1, "a": "x", "crc": "ffffffff"}) == expected


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_cut_off_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-cut])
    content = read_journal(path)
    assert len(content.events) == 3
    assert "cut off" in content.warnings[0]
    with Journal(tmp_path) as journal:
        assert len(journal.content.events) == 3
        journal.append("warning", {"message": "after"})
    again = read_journal(path)
    assert [e.get("message") for e in again.events[1:]] == ["number 0 é", "number 1 é", "after"]
    assert not again.warnings
    assert again.events[-1]["session"] == 2


def test_damaged_line_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"number 1", b"number 7")
    path.write_bytes(b"\n".join(lines))
    content = read_journal(path)
    assert content.damaged == (3,)
    assert "line 3" in content.warnings[0]
    assert [e.get("message") for e in content.events[1:]] == ["number 0 é", "number 2 é"]


def test_a_trial_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append("header", HEADER)
        for loss in (3.0, 4.0):
            journal.append("trial", {"key": "a", "loss": loss})
    content = read_journal(tmp_path / "trials.jsonl")
    assert [e.get("loss") for e in content.events] == [None, 3.0]
    assert content.warnings == ("lines of trials.jsonl left out, because they repeat earlier lines: 1, the first of "
                                "them line 3",)
    assert content.damaged == ()


@pytest.mark.parametrize("text", ["hello", "hello\n", '{"event": "trial"}\n', "[]\n", "\n"])
def test_foreign_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match="out="), Journal(tmp_path):
        pass
    assert path.read_text() == text
    with pytest.raises(JournalError), Journal(tmp_path):  # the lock was released: not "in use"
        pass


def test_another_schema_is_refused_whatever_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text('{"event":"header","schema_version":99}\n')
    with pytest.raises(JournalError, match=r"schema 99.*reads schema 3"):
        read_journal(tmp_path / "trials.jsonl")


def in_a_child(act: Callable[[], object]) -> None:
    """Do ``act`` in a forked process, which is killed then, while what it returned is alive."""
    child = os.fork()
    if child == 0:
        try:
            held = act()  # noqa: F841
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@FORKS
def test_second_writer_is_told_who_holds_the_run(tmp_path: Path) -> None:
    def enter() -> None:
        try:
            Journal(tmp_path).__enter__()
        except OutputError as error:
            (tmp_path / "said").write_text(str(error))

    with Journal(tmp_path):
        in_a_child(enter)
    assert f"in use by process {os.getpid()} on" in (tmp_path / "said").read_text()
    with Journal(tmp_path) as again:
        assert again.content.events == ()


@FORKS
@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("has_flock", [True, False])
def test_lock_of_a_dead_process_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_flock: bool) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not there")

    if not has_flock:
        monkeypatch.setattr(fcntl, "flock", flock)
    for lock in [run_lock(tmp_path), run_lock(tmp_path)]:  # the second one takes it over
        in_a_child(lock.__enter__)
        assert (tmp_path / LOCK_NAME).exists()
    with run_lock(tmp_path):
        assert is_locked(tmp_path)
        gone = "" if has_flock else rf".*delete .*{LOCK_NAME} if that"
        with pytest.raises(OutputError, match=rf"in use by process {os.getpid()} on {gone}"):
            run_lock(tmp_path).__enter__()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_is_not_json_is_a_bug_and_writes_nothing(tmp_path: Path, value: object) -> None:
    with Journal(tmp_path) as journal:
        journal.append("header", HEADER)
        with pytest.raises(ContractError, match="not JSON"):
            journal.append("warning", {"message": value})
        with pytest.raises(ContractError, match="own"):
            journal.append("warning", {"crc": "0"})
    assert len(read_journal(tmp_path / "trials.jsonl").events) == 1


def test_full_disk_stops_with_a_remedy_and_keeps_what_was_there(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path) as journal:
        journal.append("header", HEADER)
        real = os.pwrite

        def half(fd: int, data: bytes, offset: int) -> int:
            if offset > journal._size:
                raise OSError(28, "No space left on device")
            return real(fd, data[: len(data) // 2], offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half)
            with pytest.raises(OutputError, match="No space left"):
                journal.append("warning", {"message": "lost"})
        assert len(read_journal(journal.path).events) == 1
        journal.append("warning", {"message": "kept"})
    content = read_journal(tmp_path / "trials.jsonl")
    assert [e.get("message") for e in content.events] == [None, "kept"]


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved"])
def test_a_journal_that_is_no_longer_in_its_place_is_noticed(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Journal(folder) as journal:
        journal.append("header", HEADER)
        if how == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            journal.path.unlink()
        if how == "replaced":
            journal.path.write_text("another\n")
        with pytest.raises(OutputError, match="deleted, moved or replaced"):
            journal.append("warning", {"message": "nowhere"})


def test_a_file_system_that_is_read_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*args: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OutputError, match=r"Read-only file system.*out="), Journal(tmp_path):
        pass


def test_a_clock_that_jumps_changes_no_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Jumping(datetime):
        when = iter([datetime(2030, 1, 1), datetime(1999, 1, 1), datetime(2050, 1, 1)])

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return next(cls.when)

    monkeypatch.setattr("qra_bo.study.journal.datetime", Jumping)
    monotonic = iter([0.0, 10.0, 11.5, 13.0, 14.5])
    with Journal(tmp_path, clock=lambda: next(monotonic)) as journal:
        journal.append("header", HEADER)
        journal.append("warning", {"message": "a"})
        journal.append("warning", {"message": "b"})
    events = read_journal(tmp_path / "trials.jsonl").events
    assert [e["time"][:4] for e in events] == ["2030", "1999", "2050"]
    assert [e["elapsed"] for e in events] == [1.5, 3.0, 4.5]
    assert session_seconds(events) == 4.5
