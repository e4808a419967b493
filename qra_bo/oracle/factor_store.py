"""Decomposed quantisation residuals on disk: one decomposition for every (linear, format) of a model."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qra_bo.oracle.lowrank import Factors

log = logging.getLogger(__name__)


class FactorStore:
    """One folder for each key, one file for each pair; what can't be read or written is made anew, never an error.

    Args:
        folder: Where the folders of all keys lie.
        facts: JSON values that determine the factors (weights, device, releases); the code that makes them and the
            number of threads, which decides the last bit, join them.
        keep: Keys that stay; the oldest go when a new one comes.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], keep: int = 4) -> None:
        here = Path(__file__).parent
        sources = [here / "lowrank.py", *sorted((here / "quantizers").glob("*.py"))]
        code = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
        text = json.dumps({**facts, "code": code, "torch": torch.__version__, "threads": torch.get_num_threads()},
                          sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.keep = keep

    def load(self, linear: str, fmt: str, rank: int) -> Factors | None:
        """Factors of at least ``rank``, or ``None``."""
        path = self._path(linear, fmt)
        try:
            tensors = load_file(path)
            factors = Factors(tensors["down"], tensors["up"])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("the cached factors %s can't be used and are made anew: %s", path, error)
            return None
        return factors if len(factors.down) >= rank else None

    def save(self, linear: str, fmt: str, factors: Factors) -> None:
        path = self._path(linear, fmt)
        try:
            if not self.folder.is_dir():
                self._make_room()
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            save_file({"down": factors.down, "up": factors.up}, beside)
            beside.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning("factors can't be cached in %s: %s", self.folder, error)

    def _path(self, linear: str, fmt: str) -> Path:
        return self.folder / f"{linear}.{fmt}.safetensors"

    def _make_room(self) -> None:
        if not self.folder.parent.is_dir():
            return
        others = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for old in others[: max(0, len(others) - self.keep + 1)]:
            shutil.rmtree(old, ignore_errors=True)
