"""One writer a run: a lock that the operating system releases when its holder dies."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_plain

LOCK_NAME = ".lock"


class RunLock:
    """Exclusive use of a run's folder, as a context manager.

    The lock file stays behind; while the lock is held it names the holder, for the message of a second process.

    Args:
        folder: The run's folder; it must exist.

    Raises:
        OutputError: On entering, if another process holds the lock or the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._lock = FileLock(self.path, timeout=0)

    def acquire(self) -> None:
        """Take the lock, or raise ``OutputError``."""
        check_plain(self.path)
        try:
            self._lock.acquire()
            self.path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                                             "since": datetime.now().astimezone().isoformat(timespec="seconds")}))
        except Timeout as error:
            raise OutputError(f"the run's folder {self.path.parent} is in use by {self._holder()}; wait for it, stop "
                              "it, or choose another folder with out=") from error
        except OSError as error:
            raise OutputError(f"the run's folder {self.path.parent} can't be written ({error.strerror}); choose "
                              "another with out=, or mend its permissions") from error

    def release(self) -> None:
        """Give the lock back; without effect where it is not held."""
        self._lock.release()

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.release()

    def _holder(self) -> str:
        """Return the holder's own description; one that has not written it yet is just another process."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self.path.read_text())
            return f"process {int(data['pid'])} on {data['host']} since {data['since']}"
        return "another process"


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
