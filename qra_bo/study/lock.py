"""One writer a run: a lock that the operating system releases when its holder dies."""

import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_plain

LOCK_NAME = ".lock"


class RunLock:
    """Exclusive use of a run's folder, as a context manager.

    ``flock`` belongs to the open file: it ends with the process, however that dies, so that a lock can't be stale.
    The file holds who has it, for the message that a second process gets, and stays behind empty of meaning.

    Args:
        folder: The run's folder; it must exist.

    Raises:
        OutputError: On entering, if another process holds the lock or the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._file: IO[str] | None = None

    def __enter__(self) -> "RunLock":
        check_plain(self.path)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            file = os.fdopen(fd, "r+", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"the run's folder {self.path.parent} can't be written ({error.strerror}); choose "
                              "another with out=, or mend its permissions") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            file.close()
            raise OutputError(f"the run's folder {self.path.parent} is in use by {holder}; wait for it, stop it, or "
                              "choose another folder with out=") from error
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(),
                   "since": datetime.now().astimezone().isoformat(timespec="seconds")}, file)
        file.flush()
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _holder(file: IO[str]) -> str:
    """Who wrote the lock, in words; a holder that has not written yet is just another process."""
    file.seek(0)
    try:
        data = json.loads(file.read())
        return f"process {int(data['pid'])} on {data['host']} since {data['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
