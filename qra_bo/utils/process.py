"""Independence of a process from its standard streams, its working directory and settings that it does not use; fresh
interpreters; and the signals that stop a run."""

import codecs
import io
import locale
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from typing import Any, TextIO, cast

from qra_bo.utils.errors import OutputError

ASKED = (signal.SIGINT, signal.SIGTERM)
"""Of people and schedulers who ask for the end."""
NOTIFIED = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Of a terminal that is gone, and a warning of a scheduler: often sent twice in a row. Windows has neither."""
STOPPING = (*ASKED, *NOTIFIED)
"""The driver ends at a clean line, and workers leave them to the driver."""
_ALONE = threading.Lock()
_ASCII = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")
"""What stands for characters that a number loses its sign without."""


class TolerantStream:
    """Text output that drops what its stream can't write and shows what it can't encode as ``?``.

    A reader that is gone, a full disk and a closed terminal so end no run. Everything else is the stream's own.

    Args:
        stream: Stdout or stderr; ``None``, as Python has it where the descriptor was closed, takes nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.TextIOBase() if stream is None else stream  # whose writing is refused
        self.lost: OSError | None = None  # why text that somebody may read was dropped

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (BrokenPipeError, ValueError):  # nobody reads it; a closed file is a ValueError
            pass
        except OSError as error:
            self.lost = error

    def write(self, text: str) -> int:
        """Write what can be written; return the length of ``text``."""
        with self._dropping():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding, text = str(self._stream.encoding), text.translate(_ASCII)
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it still can be."""
        with self._dropping():
            self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; one that is closed is none."""
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerant(stream: TextIO | None) -> TextIO:
    """Return ``stream`` as a ``TolerantStream``."""
    return stream if isinstance(stream, TolerantStream) else cast(TextIO, TolerantStream(stream))


def check_printed() -> None:
    """Raise ``OutputError`` if stdout did not take all that was printed, as on a full disk: half an answer is none."""
    sys.stdout.flush()
    if isinstance(sys.stdout, TolerantStream) and (error := sys.stdout.lost) is not None:
        raise OutputError(f"the answer could not be written to standard output ({error.strerror}); make space, or "
                          "write it elsewhere, and run the same command again")


@contextmanager
def bounded(size: int, seconds: float) -> Iterator[None]:
    """Let this process take at most ``size`` more bytes of addresses and ``seconds`` of a CPU inside the block, which
    then raises ``MemoryError`` or ``TimeoutError``, the latter until no ``except`` inside holds it up. One block at a
    time; no shorter limit is lifted. Outside the main thread, which alone gets signals, time is not bounded."""
    with _ALONE:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + size
        timed = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGVTALRM, _late) if timed else None
        resource.setrlimit(resource.RLIMIT_AS, (most if soft < 0 else min(soft, most), hard))
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds * timed, 0.1)
            yield
        finally:
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            finally:  # a last signal may come on the way out
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
                if timed:
                    signal.signal(signal.SIGVTALRM, before)


def _late(*_: object) -> None:
    raise TimeoutError("it computes for too long and may never end")


def interpreter(code: str, *arguments: str) -> list[str]:
    """Return the command of a fresh interpreter that finds modules where this one does and runs ``code``.

    It has imported ``sys``, and finds ``arguments`` in ``sys.argv`` from 1. ``multiprocessing`` would import the user's
    script again, which then needs ``if __name__ == "__main__"``.
    """
    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    start = f"import sys; sys.path[:] = sys.argv[{len(arguments) + 1}:]; {code}"
    return [sys.executable, *flags, "-P", "-c", start, *arguments, *sys.path]


def prepare() -> None:
    """Make this process independent of streams, an ASCII locale and ``MPLBACKEND``; call it before files are opened.

    A closed stream leads to the null device, so that no other file gets its descriptor. Plots are drawn into files,
    whatever backend is named. Modules of the working directory shadow no installed ones.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, flags)  # the lowest free descriptor: this one
            os.set_inheritable(null, True)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("qra_bo: the working folder is gone; change to another one", file=sys.stderr)
        raise SystemExit(2) from None
    if sys.path[0] == here and not __file__.startswith(os.path.join(sys.path[0], "")):
        sys.path.append(sys.path.pop(0))  # by python -m; the user's own parts are found there, after what is installed
    if codecs.lookup(locale.getencoding()).name == "ascii":  # torch reads files of its own by the locale
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        os.environ["PYTHONUTF8"] = "1"  # of workers
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)
    sys.stdin = os.fdopen(0, encoding=getattr(sys.stdin, "encoding", None), errors="replace", closefd=False)
    os.environ["MPLBACKEND"] = "agg"
