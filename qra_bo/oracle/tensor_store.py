"""Tensors that take long to make, kept on disk between runs: one folder for all that decides about them."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)


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
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        path = self._path(name)
        try:
            if not self.folder.is_dir():
                self._make_room()
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            save_file(dict(tensors), beside)
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning("tensors can't be cached in %s: %s", self.folder, error)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _make_room(self) -> None:
        if not self.folder.parent.is_dir():
            return
        others = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in others[: max(0, len(others) - self.keep + 1)]:
            shutil.rmtree(old, ignore_errors=True)
