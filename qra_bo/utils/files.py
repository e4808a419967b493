"""Atomic writing, strict and checksummed JSON, and refusal of run folders that hold anything but plain files."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qra_bo.utils.errors import OutputError

COPY_AGAIN = "copy the run's folder again from where it was made"
"""Remedy for a damaged file of a run that no command can write again."""
MAY_READ = "ask its owner to let you read it: chmod -R a+rX on the run's folder"
"""Remedy for files of a run that belong to someone else."""
MOST_DIGITS = 300
"""Digits of the largest whole number in a file; a longer one exceeds the range of floats."""


def user_path(text: str) -> Path:
    """Return the path of a text, in which ``~`` stands for the user's folder where there is one."""
    return Path(os.path.expanduser(text))


@contextmanager
def writing(where: Path, remedy: str) -> Iterator[None]:
    """Turn failures of the disk or the folder while ``where`` is written into a user error.

    Raises ``OutputError`` for an ``OSError`` inside the block, or what safetensors or tokenizers makes of one.

    Args:
        where: File or folder, for the message.
        remedy: Next step once the disk has space and the folder is writable.
    """
    try:
        yield
    except Exception as error:
        of_safetensors = type(error).__name__ == "SafetensorError"  # may not be loaded
        of_tokenizers = type(error) is Exception and "(os error " in str(error)  # which has no class of its own
        if not isinstance(error, OSError) and not of_safetensors and not of_tokenizers:
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{where} can't be written ({reason}); free the disk or make the folder writable, then "
                          f"{remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces ``path`` at the end of the block: a reader sees the whole old
    file or the whole new one. Raises ``OSError`` if that can't be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a process that ended
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # mostly gone; if not, it costs space alone
            temporary.unlink()


def replace_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` as ``replacing`` does, and wait for the disk; raises ``OSError`` if it can't."""
    # A link that another process puts there is not followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with replacing(path) as temporary, open(os.open(temporary, flags, 0o666), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def follow_umask(*paths: Path) -> None:
    """Give files the permissions that a new one gets in their folder: libraries that write a temporary file and rename
    it leave them to its owner alone. Raises ``OSError`` if that can't be done."""
    for path in paths:
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            fresh.touch()
            path.chmod(stat.S_IMODE(fresh.stat().st_mode))
        finally:
            with suppress(OSError):
                fresh.unlink()


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by indented JSON, as ``replace_text`` does; raises ``OSError`` if it can't be written."""
    replace_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def strict_json(text: str | bytes) -> Any:
    """Parse JSON, and refuse values that this program never writes. Raises ``ValueError`` if it is no JSON, is nested
    too deeply, or holds NaN, a number beyond the range of floats, or an object with one key twice."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=bounded_int,
                          object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from any file; raises ``OutputError`` if it can't be read, or is something else."""
    if path.exists() and not path.is_file():  # a pipe would wait for ever, a device never end
        raise OutputError(f"{path} must be a file of JSON; it is a folder, a pipe or a device")
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise OutputError(f"{path} must hold an object")
    return data


def bounded_int(text: str) -> int:
    """Parse a whole number of JSON; raises ``ValueError`` if it has more than ``MOST_DIGITS``."""
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:40]}... is beyond the range of numbers")
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it gives {max(found, key=[key for key, _ in pairs].count)[:40]!r} twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise ValueError(f"{text[:40]} is beyond the range of numbers, which must be finite")
    return value


def free_on_disk(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def check_plain(path: Path) -> None:
    """Raise ``OutputError`` if a path is there and no regular file: a symbolic link, a pipe, a device or a folder."""
    try:
        kind = _kind(path)
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror}); change its permissions, or choose another folder"
                          ) from error
    if kind:
        raise OutputError(f"{path} is {kind}, and a run's folder holds plain files: nothing in it is touched. Copy it "
                          "as a plain file, or choose another folder with out=")


def check_readable(path: Path) -> None:
    """Refuse a file that can't be read. Raises ``OutputError`` with the reason, which safetensors does not tell."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror}); "
                          f"{MAY_READ if isinstance(error, PermissionError) else COPY_AGAIN}") from error


def check_run_folder(folder: Path) -> None:
    """Refuse a run's folder that holds links, which lead out of it, or pipes and devices, at which readers would hang.
    Raises ``OutputError`` with one of them, or with a folder that can't be read."""
    try:
        for root, folders, names in os.walk(folder, onerror=_raise):
            for path in (Path(root, name) for name in (*folders, *names)):
                if (kind := _kind(path)) not in ("", _FOLDER):
                    raise OutputError(f"{folder} holds {path.relative_to(folder)}, which is {kind}; a run's folder "
                                      "holds plain files, and nothing in this one is read or written. Take a copy "
                                      "without it, or another folder")
    except OSError as error:
        raise OutputError(f"{error.filename} can't be read ({error.strerror}); {MAY_READ}") from error


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # what reads those says so
        raise error


_FOLDER = "a folder"


def _kind(path: Path) -> str:
    """What ``path`` is instead of a regular file; empty for a regular file and where nothing is there."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {os.readlink(path)}"
    kinds = {stat.S_IFREG: "", stat.S_IFDIR: _FOLDER}
    return kinds.get(stat.S_IFMT(mode), "no regular file (a pipe, a socket or a device)")


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of results, below ``$QRA_BO_CACHE`` or ``qra_bo`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qra_bo"
    return Path(os.environ.get("QRA_BO_CACHE") or default) / kind
