"""A cheap planted oracle with faults on demand; importable by a worker process."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qra_bo.oracle.protocol import Progress, StopRequested
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, ModelError

UNITS = tuple(f"model.layers.{u}" for u in range(4))
FORMATS = ("hqq2", "nf4", "hqq8")
DAMAGE = np.outer([1.0, .3, .2, .6], [1.0, .1, .0])
TOKENS = 10


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class PlantedOracle:
    """Loss = 4 + damage eased by rank + noise by key; a step is ``TOKENS`` tokens and ``pause`` seconds.

    ``faults`` maps the number of an evaluation (counted over processes through files in ``folder``) to what goes wrong.
    """

    def __init__(self, pause: float = 0.0, faults: Mapping[str, str] | None = None, folder: str | None = None,
                 data: str = "d0") -> None:
        self.pause, self.faults, self.data = pause, dict(faults or {}), data
        self.folder = None if folder is None else Path(folder)
        self.profile_cost = {"training_tokens": 4, "forward_tokens": 30}
        self.closed = False

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "dtype": "float64", "threads": 1, "data_sha256": self.data, "base_origin": "planted"}

    def profile(self, progress: Progress) -> SensitivityProfile:
        progress("profile", 1, 1)
        time.sleep(self.pause)
        gain = np.cumsum(np.full((4, 8), .01 / 3), axis=1)
        return SensitivityProfile(UNITS, FORMATS, DAMAGE, DAMAGE * .7, gain, 4.0 + 1 / 3, "planted")

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        fault = self._fault()
        start = time.monotonic()
        for step in range(10**6 if fault == "crawl" else request.steps):
            try:
                progress("train (loss 4.0000)", step + 1, 10**6 if fault == "crawl" else request.steps)
            except StopRequested:
                if self.folder is not None:
                    (self.folder.parent / "kept").write_text(str(step + 1))
                raise
            time.sleep(.05 if fault == "crawl" else self.pause / request.steps)
        a = request.allocation
        noise = np.random.default_rng(abs(int(a.fingerprint, 16)) + request.train_seed).normal() * .001
        damage = {"fp16": np.zeros(4), **{f: DAMAGE[:, i] for i, f in enumerate(FORMATS)}}
        loss = (4 + sum(damage[f][u] / (1 + .2 * r) for u, (f, r) in enumerate(zip(a.formats, a.ranks, strict=True)))
                - .01 * sum(a.ranks) / len(a.ranks) + 1 / request.steps + .05 * np.log2(request.learning_rate / 2e-3)**2
                + .01 * request.train_seed / 2**31 + noise)
        return TrialResult(TrialState.OK, float(loss), .002, ((request.steps, float(loss)),), request.steps,
                           request.steps * TOKENS, 3 * TOKENS, None, time.monotonic() - start, 0.0)

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Progress) -> dict[str, Any]:
        """One byte, so that everything fits."""
        return {"state": "ok", "message": "", "measured_bytes": 1, "peaks": {}}

    def untuned(self, split: str, progress: Progress) -> dict[str, Any]:
        """Two test sequences."""
        return {"loss": 4.5, "loss_se": .1, "sequences": [[44.0, 10], [46.0, 10]], "forward_tokens": 20,
                "prompt": "What is", "text": " what"}

    def finalise(self, allocation: Mapping[str, Any], out: str, progress: Progress, **settings: Any) -> dict[str, Any]:
        """A final fine-tune that takes no time and leaves its files."""
        (Path(out) / "adapter").mkdir(exist_ok=True)
        for name in ("adapter/adapter_model.safetensors", "quant_manifest.json"):
            (Path(out) / name).write_text(json.dumps(allocation))
        return {"steps": 100, "planned_steps": 100, "kept_step": 50, "curve": [[50, 3.6], [100, 3.7]], "loss": 3.5,
                "loss_se": .01, "sequences": [[34.0, 10], [36.0, 10]], "text": " it?"}

    def forget(self, progress: Progress, trainings: Sequence[str]) -> dict[str, Any]:
        """Nothing: it keeps no checkpoint."""
        return {}

    def close(self) -> None:
        self.closed = True

    def _fault(self) -> str | None:
        if self.folder is None:
            return None
        n = len(list(self.folder.iterdir()))
        (self.folder / str(n)).touch()
        fault = self.faults.get(str(n))
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "exit":
            os._exit(3)
        elif fault == "hang":
            time.sleep(60)
        elif fault == "raise":
            raise RuntimeError("matrix is singular\nand more")
        elif fault == "memory":
            raise MemoryError("no room")
        elif fault == "allocator":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: "
                               "you tried to allocate 4096 bytes. Error code 12")
        elif fault == "device":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        elif fault == "bug":
            raise ContractError("realised rank differs")
        return fault


def make(**kwargs: Any) -> PlantedOracle:
    return PlantedOracle(**kwargs)


def no_weights(name: str) -> PlantedOracle:
    raise ModelError(f"no weights of {name}")


def finds_no_room() -> PlantedOracle:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")


def shared(oracle: PlantedOracle, share: Mapping[str, Any], fault: str, progress: Progress) -> dict[str, Any]:
    """A call that two share: the first waits for the second, which may have a fault."""
    progress("train", share["number"], 2)
    there = Path(share["folder"], "there")
    if not share["number"]:
        while not there.exists():
            time.sleep(.01)
        return {"size": share["size"]}
    if fault == "exit":
        os._exit(3)
    if fault == "raise":
        raise ModelError(f"no weights in process {share['number']}")
    there.touch(exist_ok=False)
    return {}


def asks_for_room(oracle: PlantedOracle, progress: Progress) -> dict[str, Any]:
    """A method that finds no room."""
    raise RuntimeError("CUDA driver error: out of memory")


def draws_a_bar(drawn: str) -> None:
    """Draw a progress bar where ``multiprocessing`` spawns, as on macOS, and go on building."""
    multiprocessing.set_start_method("spawn")
    list(tqdm(range(1), disable=False))  # whatever TQDM_DISABLE says
    Path(drawn).touch()
    time.sleep(100)
