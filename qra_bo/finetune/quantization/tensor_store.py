"""Tensors that take long to make, kept on disk between runs: one folder for all that decides about them."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)
LOCK = ".lock"
POLL_SECONDS = 0.5
"""Between two looks at whether another process is done."""


class TensorStore:
    """One folder for each key, one file for each name; what can't be read or written is made anew, never an error.

    Args:
        folder: Where the folders of all keys lie.
        facts: JSON values that determine the tensors (weights, device, releases); the sources that make them and the
            number of threads, which decides the last bit, join them.
        sources: Files of the code that makes them.
        keep: Keys that stay; the oldest go when a new one comes.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], sources: Iterable[Path], keep: int = 4) -> None:
        code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
        text = json.dumps({**facts, "code": code, "torch": torch.__version__, "threads": torch.get_num_threads()},
                          sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.keep = keep
        self._touched = False

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was saved as ``name``, or ``None``."""
        path = self._path(name)
        try:
            found: dict[str, Tensor] = load_file(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("the cached tensors %s can't be used and are made anew: %s", path, error)
            return None
        self._touch()
        return found

    def _touch(self) -> None:
        """The keys that were not used for the longest time are the first to go."""
        if not self._touched:
            self._touched = True
            with suppress(OSError):  # what can be read may be another's
                os.utime(self.folder)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        path = self._path(name)
        beside = path.with_suffix(f".{os.getpid()}")
        try:
            self._make_folder()
            save_file(dict(tensors), beside)
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink()  # a full disk needs no half a file
            log.warning("tensors can't be cached in %s: %s", self.folder, error)

    @property
    def count(self) -> int:
        """How many names are saved."""
        return len(list(self.folder.glob("*.safetensors")))

    @contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Within it no other process that asks for this makes tensors of this key; ends with the process in any case.

        Args:
            waiting: Called again and again until the others are done.
        """
        lock = self._lock_file()
        try:
            if lock is not None and not self._took(lock):
                log.warning("another process is making what is kept in %s; waiting for it", self.folder)
                while not self._took(lock):
                    waiting()
                    time.sleep(POLL_SECONDS)
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _lock_file(self) -> int | None:
        try:
            self._make_folder()
            return os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            log.warning("tensors can't be cached in %s: %s", self.folder, error)
            return None

    def _took(self, lock: int) -> bool:
        """Whether the lock is this process's; on a file system without locks it is: the worst is making twice."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("%s can't be locked: %s", self.folder / LOCK, error)
        return True

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self._make_room()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _make_room(self) -> None:
        if not self.folder.parent.is_dir():
            return
        others = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in others[: max(0, len(others) - self.keep + 1)]:
            shutil.rmtree(old, ignore_errors=True)
