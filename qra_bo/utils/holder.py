"""Which process holds a lock: its file says so, for the messages of others; and which process is stopped."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path


def name_holder(path: Path) -> None:
    """Write this process into the file of a lock that it holds.

    A marker of filelock's own, which begins with the holder's number, stays: where the file system has no locks it is
    the lock, and another process takes it over where that holder is dead. Raises ``OSError`` if it can't be written.
    """
    if path.read_bytes()[:1].isdigit():
        return
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                                "since": datetime.now().astimezone().isoformat(timespec="seconds")}))


def holder_of(path: Path) -> str:
    """Return the holder's own description; one that has not written it yet is just another process."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        text = path.read_text()
        if text[:1].isdigit():
            number, host = text.split()[:2]
            return f"process {number} on {host} (the file system has no locks: delete {path} if that process is gone)"
        data = json.loads(text)
        pid = int(data["pid"])
        stopped = data["host"] == socket.gethostname() and is_stopped(pid)
        return f"process {pid} on {data['host']} since {data['since']}{' (it is stopped)' if stopped else ''}"
    return "another process"


def is_stopped(pid: int) -> bool:
    """Return whether a process of this machine waits for SIGCONT; where there is no ``/proc``, none is known to."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
