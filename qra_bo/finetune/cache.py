"""Results that take long to make, kept on disk between runs: chosen codes, decompositions, sensitivity profiles.

The key of a result is a hash of all that determines it: the facts that the caller gives and the code of this package.
A file that can't be read or written costs time: the result is made anew, and there is no error.
"""

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
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qra_bo.sensitivity.io import profile_from_json, profile_to_json
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.files import replace_text, strict_json

log = logging.getLogger(__name__)
SAMPLE_BYTES = 4096
LOCK = ".lock"
POLL_SECONDS = 0.5
"""Time between two attempts to take the lock of another process."""


def weights_fingerprint(model: Any) -> str:
    """Return a hash of every parameter's name, shape, type and first bytes: fast, and distinct for distinct models."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)[: SAMPLE_BYTES // tensor.element_size()].cpu().float()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def _key(facts: Mapping[str, Any]) -> str:
    """Return the hash of the facts and of this package's code; the number of threads decides the last bit."""
    code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))
    text = json.dumps({**facts, "code": code.hexdigest(), "threads": torch.get_num_threads()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class TensorStore:
    """Tensors by name in one folder for each key.

    Args:
        folder: Folder of one kind of results, which holds the folders of all keys.
        facts: JSON values that determine the tensors (weights, device, releases of packages).
        keep: How many keys stay; the least recently used go when a new one comes.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], keep: int = 4) -> None:
        self.folder, self.keep = folder / _key(facts), keep
        self._touched = False

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors saved as ``name``, or ``None``."""
        path = self._path(name)
        try:
            found: dict[str, Tensor] = load_file(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("the cached tensors %s can't be used and are made anew: %s", path, error)
            return None
        if not self._touched:
            self._touched = True
            with suppress(OSError):  # a folder that can be read may belong to another user
                os.utime(self.folder)
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a name."""
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
        """Exclude other processes that make tensors of this key; the lock ends with the process.

        Args:
            waiting: Called again and again until the other process is done.
        """
        lock = FileLock(self.folder / LOCK)
        if not self._took(lock):
            log.warning("another process is making the tensors of %s; waiting for it", self.folder)
            while not self._took(lock):
                waiting()
                time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def _took(self, lock: FileLock) -> bool:
        """Whether other processes are excluded; true too where no lock can be made: at worst the work is done twice."""
        try:
            self._make_folder()
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            log.warning("%s can't be locked: %s", self.folder / LOCK, error)
        return True

    def _make_folder(self) -> None:
        if not self.folder.is_dir() and self.folder.parent.is_dir():
            others = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
            for old in others[: max(0, len(others) - self.keep + 1)]:
                shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class ProfileCache:
    """One sensitivity profile for each key.

    Args:
        folder: Folder of the profiles.
        facts: JSON values that determine the profile.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.path = folder / f"{_key(facts)}.json"

    def load(self, units: Iterable[str]) -> tuple[SensitivityProfile, dict[str, int]] | None:
        """Return the profile of these units and its cost in tokens, or ``None``."""
        try:
            stored = strict_json(self.path.read_text(encoding="utf-8"))
            profile = profile_from_json(stored["profile"], str(self.path))
            cost = {key: int(stored["cost"][key]) for key in ("training_tokens", "forward_tokens")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ProfileError) as error:
            log.warning("the cached sensitivity profile %s can't be used and is measured anew: %s", self.path, error)
            return None
        return (profile, cost) if profile.units == tuple(units) else None

    def save(self, profile: SensitivityProfile, cost: Mapping[str, int]) -> None:
        """Write a profile and its cost in tokens."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, json.dumps({"profile": profile_to_json(profile), "cost": dict(cost)}))
        except OSError as error:
            log.warning("the sensitivity profile can't be cached in %s: %s", self.path.parent, error)
