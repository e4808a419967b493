"""Files that may come from strangers, and folders that may be full, read-only or gone: one message for each."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from qra_bo.utils.errors import OutputError

COPY_AGAIN = "copy the run's folder again from where it was made"
"""What to do about a file of a run that is damaged: no command makes it anew."""
MOST_DIGITS = 300
"""Of a whole number in a file: beyond them it is no float either, and sums and sizes of it would fail anywhere."""


@contextmanager
def writing(where: Path, remedy: str) -> Iterator[None]:
    """What goes wrong with the disk or the folder while ``where`` is written, as a user error.

    Args:
        where: File or folder, for the message.
        remedy: What to do once the disk is mended.

    Raises:
        OutputError: For an ``OSError`` inside the block, or what safetensors makes of one.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{where} can't be written ({error.strerror or error}); free the disk or mend the folder, "
                          f"then {remedy}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its package may not be loaded
            raise
        raise OutputError(f"{where} can't be written ({error}); free the disk or mend the folder, then {remedy}"
                          ) from error


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; a reader sees the old file or the new one, whole, whoever else writes it.

    Raises:
        OSError: If it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a process that ended
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW  # what another puts there is not written through
    try:
        with open(os.open(temporary, flags, 0o666), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by indented JSON, as ``replace_text`` does.

    Raises:
        OSError: If it can't be written.
    """
    replace_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def strict_json(text: str | bytes) -> Any:
    """The JSON value of ``text``, with nothing in it that this program never writes.

    Raises:
        ValueError: If it is no JSON, is nested too deeply, or holds NaN or a number beyond the range of floats.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=bounded_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def bounded_int(text: str) -> int:
    """A whole number of JSON.

    Raises:
        ValueError: If it has more than ``MOST_DIGITS``.
    """
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:40]}... is beyond the range of numbers")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def check_plain(path: Path) -> None:
    """Refuse a name that is a link or no regular file; one that is not there is fine.

    Raises:
        OutputError: If it is a symbolic link, a pipe, a device or a folder.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror}); mend its permissions, or choose another folder"
                          ) from error
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"{path} is {what}, and a run's folder holds plain files: it was not made by this program, "
                          "or was changed; nothing in it is touched. Take its plain copy, or another folder with out=")


def check_run_folder(folder: Path) -> None:
    """Refuse a run's folder with links in it, through which what is written or read would go elsewhere, or with pipes
    and devices, at which a reader would wait or read for ever.

    Raises:
        OutputError: With the first of them, and where links lead.
    """
    links, others = [], []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        links += [here / name for name in (*folders, *names) if (here / name).is_symlink()]
        others += [here / name for name in names if _is_special(here / name)]
    if others:
        raise OutputError(f"{folder} holds {min(others).relative_to(folder)}, which is no regular file (a pipe, a "
                          "socket or a device): nothing in it is read or written. Take a copy without it, or another "
                          "folder")
    if links:
        listed = ", ".join(f"{link.relative_to(folder)} -> {os.readlink(link)}" for link in sorted(links)[:3])
        raise OutputError(f"{folder} holds symbolic links ({listed}), which a run's folder never does: nothing in it "
                          "is read or written. Take a copy without them, or another folder")


def _is_special(path: Path) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:  # another process has removed it meanwhile
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISLNK(mode)
