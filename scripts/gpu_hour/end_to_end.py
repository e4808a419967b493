"""A whole search of the command line, continued call by call, and the loading of what it delivered."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import qra_bo
from qra_bo.finetune.manifest import PROBE, probe_difference
from qra_bo.study.journal import JOURNAL_NAME
from scripts.gpu_hour.results import UnfinishedError
from scripts.gpu_hour.stage import ALL_LAYERS, Stage

AT_MOST_SECONDS, GRACE_SECONDS = 480, 60
"""Time of a search in one call; then it is stopped, and continued by the next call."""
DELIVERED = (0, 3)
"""Exit statuses of a search that delivered."""


def run_folder(stage: Stage) -> Path:
    return stage.work / f"search-{stage.device.type}"


def search(stage: Stage) -> Iterator[dict[str, Any]]:
    """Search, confirm and fine-tune the decoder of full depth by the command line, in at most one call's time.

    Raises:
        UnfinishedError: If the time is over; the next call goes on.
        RuntimeError: If the search fails.
    """
    out = run_folder(stage)
    length = 16 if stage.tiny else 512
    command = [sys.executable, "-m", "qra_bo", *stage.overrides(length, ALL_LAYERS), f"out={out}",
               f"resume={str((out / JOURNAL_NAME).exists()).lower()}",
               "budget=uniform:4,8", "search.force=true", "train.checkpointing=true", "effort=quick",
               "fidelity.high=4", "fidelity.low=null", "confirm.seeds=2", "final.steps=8", "display=plain"]
    if stage.tiny:
        command += ["effort.max_full_trials=2", "method=random", "export.targets=[]"]
    begun, log = time.monotonic(), stage.work / "search.log"
    with log.open("a", encoding="utf-8") as writer:
        process = subprocess.Popen(command, stdout=writer, stderr=subprocess.STDOUT)
        try:
            status = process.wait(AT_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            raise UnfinishedError(f"the search was stopped after {AT_MOST_SECONDS} s; the same call continues it"
                                  ) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status not in DELIVERED:
        raise RuntimeError(f"the search ended with status {status}: {log.read_text(encoding='utf-8')[-2000:]}")
    yield {"status": status, "seconds_of_last_call": time.monotonic() - begun,
           "trials": len((out / JOURNAL_NAME).read_text(encoding="utf-8").splitlines()), **best_of(out)}


def best_of(out: Path) -> dict[str, Any]:
    """Return the loss and the bytes of ``best.json``."""
    best = json.loads((out / "best.json").read_text(encoding="utf-8"))
    memory = {key: best["memory"][key] for key in ("predicted_bytes", "measured_bytes", "budget_bytes")}
    return {"loss": best["loss"], "metric": best["metric"], **memory}


def load(stage: Stage) -> Iterator[dict[str, Any]]:
    """Load the search's result on the device and on the CPU; the difference of logits to those kept by the run."""
    out = run_folder(stage)
    for device in dict.fromkeys((stage.device, torch.device("cpu"))):
        begun = time.monotonic()
        model, _ = qra_bo.load(out, device=str(device))
        seconds = time.monotonic() - begun
        yield {"device": str(device), "seconds": seconds,
               "largest_difference_of_logits": probe_difference(model, out / PROBE, device)}
        del model
        stage.release()
