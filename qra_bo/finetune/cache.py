"""Results that take long to make, kept on disk between runs: chosen codes, decompositions, packed layers, profiles.

The key of a result is a hash of the facts that the caller gives: all that determines it, such as digests of weights and
text, settings, releases of packages, and the versions of the encoders (``VERSION`` beside each of them). Every file has
a checksum, which covers its key. A file that is damaged, or can't be read or written, costs time: the result is made
anew with a warning. The least recently used keys go where all take more than ``LARGEST`` bytes or ``SHARE`` of the
disk, but none that a run used which may still go on.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from qra_bo.finetune.checked_tensors import load_checked, save_checked
from qra_bo.utils.files import replacing
from qra_bo.utils.holder import holder_of, name_holder

log = logging.getLogger(__name__)
LARGEST, SHARE = 20 * 10**9, 0.1
"""Bytes that all keys may take, and their share of what the disk has free without them: the smaller one holds."""
KEPT_SECONDS = 30 * 86400.0
"""Time for which a run that has not ended keeps the keys that it used."""
HALF_SECONDS = 3600.0
"""Age of a file under a name for the time of writing at which its writer is taken to have ended."""
LOCK = ".lock"
POLL_SECONDS = 0.5
"""Time between two attempts to take the lock of another process."""
PATIENCE_SECONDS = 300.0
"""Time without a new file after which the holder of the lock is no longer waited for."""


def _may_go_on(user: Path) -> bool:
    """Whether the run that the file ``user`` of a key names used it lately and has not ended."""
    try:
        status = json.loads((Path(user.read_text()) / "status.json").read_bytes())
        return bool(time.time() - user.stat().st_mtime < KEPT_SECONDS and status["state"] != "done")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _bytes(folder: Path) -> int:
    """Return the bytes of a key's files; what another process removes meanwhile has none."""
    total = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                total += file.stat().st_size
    return total


def make_room(cache: Path, kept: Path) -> None:
    """Remove the least recently used keys of all kinds below ``cache`` until the rest is within the limit, but not the
    key ``kept``. Raises ``OSError`` if the disk can't be asked what it has free."""
    for half in cache.glob("*/*/.*.safetensors.*"):  # its writer may have ended before it had its name
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > HALF_SECONDS:
                half.unlink()
    used: dict[Path, float] = {}
    for key in cache.glob("*/" + 32 * "[0-9a-f]"):
        with suppress(OSError):  # another process makes room too
            used[key] = key.stat().st_mtime
    sizes = {key: _bytes(key) for key in used}
    rest = sum(sizes.values())
    limit = min(LARGEST, SHARE * (shutil.disk_usage(cache).free + rest))
    for key in sorted(used, key=used.__getitem__):
        if rest > limit and key != kept and not any(_may_go_on(user) for user in key.glob("*.run")):
            shutil.rmtree(key, ignore_errors=True)
            rest -= sizes[key] - _bytes(key)  # another user's files stay


class TensorStore:
    """Tensors by name in one folder for each key.

    Args:
        folder: Folder of one kind of results, which holds the folders of all keys.
        facts: JSON values that determine the tensors (weights, device, releases of packages).
        run: Folder of the run that uses them, with its ``status.json``; ``None``: of no run.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], run: Path | None = None) -> None:
        text = json.dumps({**facts, "threads": torch.get_num_threads()}, sort_keys=True)  # these decide the last bit
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._run, self._touched = run, False

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors saved as ``name``, or ``None``."""
        path = self._path(name)
        try:
            found, facts = load_checked(path)
            if facts != self._facts(name):
                raise ValueError(f"it is the file of {facts}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the cached tensors %s can't be used and are made anew: %s", path, error)
            return None
        self._touch()
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a name."""
        try:
            self._make_folder()
            with replacing(self._path(name)) as beside:
                save_checked(beside, tensors, self._facts(name))
        except OSError as error:
            log.warning("tensors can't be cached in %s: %s", self.folder, error)

    def mapped(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write tensors under a name; return them mapped from their file, or as they are if it can't be written."""
        self.save(name, tensors)
        return self.load(name) or dict(tensors)

    @property
    def count(self) -> int:
        """How many names are saved."""
        return len(list(self.folder.glob("*.safetensors")))

    @contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Exclude other processes that make tensors of this key; the lock ends with the process.

        A process that holds the lock and saves nothing for ``PATIENCE_SECONDS`` excludes nobody: it may be stopped.

        Args:
            waiting: Called again and again while another process makes them.
        """
        lock, path = FileLock(self.folder / LOCK), self.folder / LOCK
        took, idle, count = self._took(lock), 0.0, self.count
        if not took:
            log.warning("%s is making the tensors of %s; waiting until it is done, or saves none for %.0f s",
                        holder_of(path), self.folder, PATIENCE_SECONDS)
        while not took and idle < PATIENCE_SECONDS:
            waiting()
            time.sleep(POLL_SECONDS)
            before, count = count, self.count
            idle = idle + POLL_SECONDS if count == before else 0.0
            took = self._took(lock)
        if not took:
            log.warning("%s holds %s and saved no tensors for %.0f s; they are made here too, which takes time and "
                        "changes no result. Continue or end that process", holder_of(path), path, PATIENCE_SECONDS)
        try:
            yield
        finally:
            lock.release()
            with suppress(OSError):
                make_room(self.folder.parents[1], self.folder)

    def _took(self, lock: FileLock) -> bool:
        """Whether other processes are excluded; true too where no lock can be made: at worst the work is done twice."""
        try:
            self._make_folder()
            lock.acquire(blocking=False)
            name_holder(self.folder / LOCK)
        except Timeout:
            return False
        except OSError as error:
            log.warning("%s can't be locked: %s", self.folder / LOCK, error)
        return True

    def _make_folder(self) -> None:
        new = not self.folder.is_dir()
        self.folder.mkdir(parents=True, exist_ok=True)
        if new:
            self._touched = False  # another process may have removed it
            with suppress(OSError):
                make_room(self.folder.parents[1], self.folder)
        self._touch()

    def _touch(self) -> None:
        """Mark the key as used now, and by the run; once."""
        if self._touched:
            return
        self._touched = True
        with suppress(OSError):  # a folder that can be read may belong to another user
            os.utime(self.folder)
            if self._run is not None:
                run = str(self._run.resolve())
                (self.folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.run").write_text(run)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _facts(self, name: str) -> dict[str, str]:
        return {"key": self.folder.name, "name": name}
