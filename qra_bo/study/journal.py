"""The append-only journal of a run (one checksummed event a line, synced to disk at once), and its folder's lock."""

import errno
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qra_bo.trials import RESERVED, SCHEMA_VERSION
from qra_bo.utils.errors import ContractError, JournalError, OutputError
from qra_bo.utils.files import bounded_int, check_plain
from qra_bo.utils.holder import holder_of, name_holder
from qra_bo.utils.redact import printable, redact_all

JOURNAL_NAME = "trials.jsonl"
LOCK_NAME = ".lock"
Line = dict[str, Any]
_FIRST_BYTES = b'{"event":"header"'


def canonical(data: Mapping[str, Any]) -> str:
    """Return the canonical JSON text of ``data`` (sorted keys, no spaces, no NaN), for checksums and hashes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(data: Mapping[str, Any]) -> str:
    """Return the CRC-32 of the canonical text without the field ``crc``, as eight hexadecimal digits."""
    text = canonical({k: v for k, v in data.items() if k != "crc"})
    return f"{zlib.crc32(text.encode()):08x}"


@dataclass(frozen=True)
class JournalContent:
    """The readable part of a journal: the good lines of its run, each and each trial once; messages about the others;
    numbers (from 1) of ``damaged`` lines that are complete; and the bytes up to the last complete line's end."""

    events: tuple[Line, ...]
    warnings: tuple[str, ...]
    damaged: tuple[int, ...]
    good_bytes: int


def read_journal(path: Path) -> JournalContent:
    """Read and verify every line; those that are damaged, repeated or of another run are named and left out.

    A cut-off last line is left out too.

    Raises:
        JournalError: If the file can't be read, has no readable header, or was written with another schema.
        OutputError: If it is a link or no regular file.
    """
    check_plain(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise JournalError(f"the journal {path} can't be read ({error.strerror})") from error
    good_bytes = raw.rfind(b"\n") + 1
    if raw:
        _check_header(path, raw, good_bytes)
    kept, seen, warnings, damaged = list[Line](), set[object](), list[str](), list[int]()
    strays: dict[str, list[int]] = {"they belong to another run": [], "they repeat earlier lines": []}
    for number, line in enumerate(raw[:good_bytes].split(b"\n")[:-1], start=1):
        event = _decode(line)
        if event is None:
            damaged.append(number)
            warnings.append(f"line {number} of {path.name} is damaged (its checksum does not hold); it was left out "
                            "and the rest kept")
            continue
        own = not kept or (event["event"] != "header" and event.get("run", kept[0]["crc"]) == kept[0]["crc"])
        names = {(event["session"], event["elapsed"], event["crc"]),
                 *([event["key"]] if event["event"] == "trial" and isinstance(event.get("key"), str) else [])}
        if own and not names & seen:
            seen |= names
            kept.append(event)
        else:
            strays["they repeat earlier lines" if names & seen else "they belong to another run"].append(number)
    if good_bytes < len(raw):
        warnings.append(f"the last line of {path.name} was cut off (a process was killed while it wrote); it was "
                        "dropped, and what it held is done again")
    warnings += [f"lines of {path.name} left out, because {why}: {len(numbers)}, the first of them line {numbers[0]}"
                 for why, numbers in strays.items() if numbers]
    return JournalContent(tuple(kept), tuple(warnings), tuple(damaged), good_bytes)


def _decode(line: bytes) -> Line | None:
    """Return the event of one line, or ``None`` if the line is damaged."""
    try:
        data = json.loads(line, parse_int=bounded_int)
        good = isinstance(data, dict) and isinstance(data.get("event"), str) and type(data.get("session")) is int \
            and type(data.get("elapsed")) in (int, float) and data.get("crc") == checksum(data)
    except (ValueError, RecursionError):  # NaN and infinity are never written
        return None
    if good and (b"\\" in line or not line.isascii() or b"\x7f" in line):
        data = _printable(data)
    return data if good else None


def _printable(value: Any) -> Any:
    """Return a JSON value whose texts are safe to show: a checksum does not say who wrote the line."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(k): _printable(v) for k, v in value.items()}
    return [_printable(v) for v in value] if isinstance(value, list) else value


def _check_header(path: Path, raw: bytes, good_bytes: int) -> None:
    """Refuse a first line that is no header of a known schema; one that was cut off may still become one."""
    if good_bytes == 0:
        if raw[: len(_FIRST_BYTES)] != _FIRST_BYTES[: len(raw)]:
            raise JournalError(f"{path} is not the journal of a run (it does not begin with a header event) and was "
                               "left as it is; choose another folder with out=")
        return
    line = raw[: raw.index(b"\n")]
    try:
        version = json.loads(line)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if type(version) is int and version != SCHEMA_VERSION:
        raise JournalError(f"{path} was written with schema {version}, this release reads schema {SCHEMA_VERSION}; use "
                           "the release that wrote it, or start a new run with another out=")
    event = _decode(line)
    if event is None or event["event"] != "header" or type(version) is not int:
        raise JournalError(f"{path} can't be used: its line 1 is not the header event of a run, or is damaged, so that "
                           "what its results belong to is unknown; start a new run with another out=")


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive use of a run's folder, which must exist; the operating system frees it when its holder dies.

    The lock file stays behind; while the lock is held it names the holder, for the message of a second process. Raises
    ``OutputError`` if another process holds the lock or the folder can't be written.
    """
    path = folder / LOCK_NAME
    check_plain(path)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        name_holder(path)
    except Timeout as error:
        raise OutputError(f"the run's folder {folder} is in use by {holder_of(path)}; wait for it, stop it, or choose "
                          "another folder with out=") from error
    except OSError as error:
        raise OutputError(f"the run's folder {folder} can't be written ({error.strerror}); choose another with out=, "
                          "or mend its permissions") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process writes to the run in ``folder``, or may, where that can't be found out."""
    path = folder / LOCK_NAME
    if not path.exists():
        return False
    try:
        check_plain(path)
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError, OutputError):
        return True


class Journal:
    """The writer of one run's journal, as a context manager; it holds the run's lock and the events read on opening.

    Args:
        folder: The run's folder; it must exist.
        shield: Keeps signals away while a line is written.
        clock: Monotonic seconds since any moment.

    Attributes:
        last: ``elapsed`` of the newest event of this session.

    Raises:
        OutputError: On entering or writing, if the folder is locked, full or not writable.
        JournalError: On entering, if there is a journal that can't be read.
    """

    def __init__(self, folder: Path, shield: Callable[[], AbstractContextManager[None]] = nullcontext,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.path = folder / JOURNAL_NAME
        self.content = JournalContent((), (), (), 0)
        self._shield, self._clock, self._held = shield, clock, ExitStack()
        self._fd: int | None = None
        self._size = 0
        self._session, self.last = 1, 0.0
        self._run: str | None = None
        self._started = clock()

    def __enter__(self) -> "Journal":
        with ExitStack() as stack:
            stack.enter_context(run_lock(self.path.parent))
            try:
                check_plain(self.path)
                if self.path.exists():
                    self.content = read_journal(self.path)
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
                stack.callback(os.close, self._fd)
                folder = os.open(self.path.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                os.fsync(folder)  # a new file's name survives a power cut
            except OSError as error:
                raise OutputError(f"the journal {self.path} can't be written ({error.strerror}); choose another folder "
                                  "with out=, or mend its permissions") from error
            self._held = stack.pop_all()
        self._size = self.content.good_bytes
        self._run = self.content.events[0]["crc"] if self.content.events else None
        self._session = 1 + max((int(e["session"]) for e in self.content.events), default=0)
        self._started = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._fd = None
        self._held.close()

    @property
    def elapsed(self) -> float:
        """Seconds since this session opened the journal, by a clock that can't jump."""
        return self._clock() - self._started

    def append(self, event: str, fields: Mapping[str, Any]) -> Line:
        """Write one event, secrets hidden, and wait until the disk has it; returns it as a reader will see it.

        Raises:
            ContractError: If a field is reserved or not JSON: a bug of the caller.
            OutputError: If the line can't be written; the lines before it stay readable.
        """
        if fields.keys() & RESERVED or self._fd is None:
            raise ContractError(f"the event {event!r} can't be written: its fields {sorted(fields.keys() & RESERVED)} "
                                "are the journal's own, or the journal is not open")
        elapsed = max(round(self.elapsed, 3), round(self.last + 0.001, 3))  # no two lines of a run are alike
        data: Line = {"event": event, "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
                       **({} if self._run is None else {"run": self._run}), "session": self._session,
                       "elapsed": elapsed, **redact_all(dict(fields))}
        try:
            data["crc"] = checksum(data)
            line = json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ContractError(f"the event {event!r} holds a value that is not JSON: {error}") from error
        with self._shield():
            self._write(self._fd, line)
        self._run, self.last = self._run or data["crc"], elapsed
        return dict(json.loads(line))

    def _write(self, fd: int, line: bytes) -> None:
        """Write after the last complete line; what a killed process left behind it is cut away."""
        try:
            # a resume would not find what is written elsewhere
            if not (self.path.exists() and os.path.samestat(self.path.lstat(), os.fstat(fd))):
                raise FileNotFoundError(errno.ENOENT, "it was deleted, moved or replaced while the run was writing it")
            os.ftruncate(fd, self._size)
            written = 0
            while written < len(line):
                written += os.pwrite(fd, line[written:], self._size + written)
            os.fsync(fd)
        except OSError as error:
            raise OutputError(f"the journal {self.path} can't be written ({error.strerror}); the run stops here and "
                              "loses nothing before it: mend that and run the same command again to go on") from error
        self._size += len(line)


def session_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds that all sessions spent on a journal: the sum of the largest ``elapsed`` of each."""
    last: dict[int, float] = {}
    for event in events:
        session = int(event["session"])
        last[session] = max(last.get(session, 0.0), float(event["elapsed"]))
    return sum(last.values())
