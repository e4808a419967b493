"""One system call of a process and of its children that fails, whatever library makes it.

Linux asks a supervisor about every call of ``CALLS`` that the process makes (seccomp's user notification): all go on
but one, which returns an error instead. So calls of Python, numpy, torch and safetensors are met alike, at native speed
between them.
"""

import ctypes
import fcntl
import os
import platform
import re
import select
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CWD = -1
"""Instead of the argument with the folder that a path is relative to: the working directory."""


@dataclass(frozen=True)
class Call:
    """A system call that writes.

    Args:
        number: On x86_64.
        at: Index of the argument with the file's descriptor, or with that of the folder that its path is relative to.
        path: Index of the argument with the path of what is made, changed or removed; ``None`` for a descriptor.
        flags: Index of the argument with the flags of opening, where only opening to write is meant.
    """

    number: int
    at: int = 0
    path: int | None = None
    flags: int | None = None


CALLS = {
    "write": Call(1), "pwrite64": Call(18), "writev": Call(20), "pwritev": Call(296), "pwritev2": Call(328),
    "sendfile": Call(40), "copy_file_range": Call(326, 2), "fallocate": Call(285), "ftruncate": Call(77),
    "truncate": Call(76, CWD, 0), "fsync": Call(74), "fdatasync": Call(75), "sync_file_range": Call(277),
    "open": Call(2, CWD, 0, 1), "openat": Call(257, 0, 1, 2), "creat": Call(85, CWD, 0), "openat2": Call(437, 0, 1),
    "rename": Call(82, CWD, 1), "renameat": Call(264, 2, 3), "renameat2": Call(316, 2, 3), "link": Call(86, CWD, 1),
    "linkat": Call(265, 2, 3), "symlink": Call(88, CWD, 1), "symlinkat": Call(266, 1, 2), "mkdir": Call(83, CWD, 0),
    "mkdirat": Call(258, 0, 1), "rmdir": Call(84, CWD, 0), "unlink": Call(87, CWD, 0), "unlinkat": Call(263, 0, 1),
    "chmod": Call(90, CWD, 0), "fchmod": Call(91), "fchmodat": Call(268, 0, 1), "utimensat": Call(280, 0, 1)}
"""By name; of two paths the second, the new one, counts."""
_NAMES = {call.number: name for name, call in CALLS.items()}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_X86_64, _SECCOMP, _SET_FILTER, _NEW_LISTENER, _NO_NEW_PRIVS = 0xC000003E, 317, 1, 8, 38
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTICE = struct.Struct("=QIIiIQ6Q")
"""Of ``struct seccomp_notif``: id, pid, flags, number, architecture, instruction pointer, arguments."""
_ANSWER = struct.Struct("=QqiI")
_AT_FDCWD = -100
_CHANGING = re.compile(r"model\.layers\.[\w.]+_proj|(?<=\.tmp)[A-Za-z0-9]{6}$|(?<=/tmp)[a-z0-9_]{8}$|[0-9a-f]{12,}|\d+")
"""Parts of a name that tell one file from others of its kind: linear layers, random letters, hashes, process ids."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def _program() -> "ctypes.Array[_Instruction]":
    """The kernel's filter: ask about the calls of ``CALLS``, let every other one pass."""
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for call in CALLS.values():
        if call.flags is None:
            lines += [(_EQUAL, 0, 1, call.number), (_RETURN, 0, 0, _NOTIFY)]
        else:  # the lower half of the argument
            lines += [(_EQUAL, 0, 4, call.number), (_LOAD, 0, 0, 16 + 8 * call.flags), (_ANY_BIT, 0, 1, _TO_WRITE),
                      (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))


def listen() -> int:
    """Have the kernel ask about this thread's calls and those of its children; returns the descriptor it asks at.

    Raises:
        OSError: Where it refuses.
    """
    libc, program = ctypes.CDLL(None, use_errno=True), _program()
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = int(libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER,
                                ctypes.byref(_Program(len(program), program))))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


def unavailable() -> str:
    """Why calls can't be made to fail on this machine; empty where they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it needs Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    pid = os.fork()
    if pid == 0:
        try:
            listen()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"the kernel refuses seccomp's user notification here ({os.strerror(status)})" if status else ""


@dataclass(frozen=True, order=True)
class Site:
    """A call and the file that it is made on, without the parts of the name that tell it from others of its kind."""

    call: str
    file: str


@dataclass(frozen=True)
class Failure:
    """The ``number``-th call at a site, counted from 1, returns ``error`` (of ``errno``) and does nothing."""

    site: Site
    number: int
    error: int


class Supervisor:
    """Answers the kernel about a process's calls in a thread, from ``connect`` to ``finish``.

    Args:
        folders: Calls on these and on what is in them count; files are named from the folder that holds it.
        failure: Of one of them; ``None`` where all go on.
    """

    def __init__(self, folders: Sequence[Path], failure: Failure | None = None) -> None:
        self.seen: Counter[Site] = Counter()
        self.hit = ""
        """The path of the call that failed."""
        self._folders, self._failure = tuple(folders), failure
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def connect(self) -> None:
        """In the forked process: put it and its children under supervision."""
        listener = listen()
        socket.send_fds(self._theirs, [b"x"], [listener])
        os.close(listener)
        self._ours.close()
        self._theirs.close()

    def start(self) -> None:
        """In the process that supervises, once the other one was forked. Nothing may be forked until ``finish``."""
        self._theirs.close()
        self._thread.start()

    def finish(self) -> None:
        """Wait until every supervised process has ended."""
        self._thread.join(60.0)
        if self._thread.is_alive():
            raise TimeoutError("a supervised process goes on")
        self._ours.close()

    def _answer(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
        if not descriptors:
            return  # it ended before it was supervised
        listener = descriptors[0]
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            events = poll.poll()[0][1]
            if events & select.POLLIN:
                self._one(listener)
            elif events & select.POLLHUP:
                os.close(listener)
                return

    def _one(self, listener: int) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
            identity, pid, _, number, _, _, *arguments = _NOTICE.unpack(notice)
            error = self._judge(pid, _NAMES[number], arguments)
            fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(identity, 0, -error, 0 if error else _CONTINUE)))
        except (FileNotFoundError, ProcessLookupError):
            pass  # the process was killed meanwhile

    def _judge(self, pid: int, name: str, arguments: list[int]) -> int:
        """Count the call; the error that it returns, 0 where it goes on."""
        path = Path(_path(pid, CALLS[name], arguments))
        within = next((folder for folder in self._folders if path.is_relative_to(folder)), None)
        if within is None:
            return 0
        site = Site(name, _CHANGING.sub("#", str(path.relative_to(within.parent))))
        self.seen[site] += 1
        if self._failure is None or self._failure.site != site or self.seen[site] != self._failure.number:
            return 0
        self.hit = str(path)
        return self._failure.error


def _path(pid: int, call: Call, arguments: list[int]) -> str:
    """The file that a call is made on; empty where it has no name."""
    descriptor = ctypes.c_int32(arguments[call.at]).value if call.at >= 0 else _AT_FDCWD
    beside = f"/proc/{pid}/{'cwd' if descriptor == _AT_FDCWD else f'fd/{descriptor}'}"
    try:
        named = "" if call.path is None or not arguments[call.path] else _text(pid, arguments[call.path])
        return os.path.normpath(named if named.startswith("/") else os.path.join(os.readlink(beside), named))
    except OSError:
        return ""  # a descriptor that is not open: the call will fail by itself


def _text(pid: int, address: int) -> str:
    """The text at an address of a process, read page by page: the next one may not be there."""
    found = b""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        while b"\0" not in found:
            found += os.pread(memory, 4096 - (address + len(found)) % 4096, address + len(found))
    finally:
        os.close(memory)
    return os.fsdecode(found[:found.index(b"\0")])
