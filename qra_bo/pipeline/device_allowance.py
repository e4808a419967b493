"""What this device's allocator needs, from the peaks that runs measured on it: ``memory.calibrate``.

A run starts with what earlier runs on the device left (and keeps that to its end, resumed or not, so that its
predictions don't change under it); when it ends, its own measured peaks are folded in for the next.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.memory.allowance import ASSUMED, PPM, Allowance, AllowanceStore, Excess, fold
from qra_bo.memory.model import MemoryModel
from qra_bo.pipeline.build import BytesPredictor
from qra_bo.space import SearchSpace
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.results import load_study
from qra_bo.trials import Trial
from qra_bo.utils.files import cache_folder

log = logging.getLogger(__name__)
Fold = Callable[[Sequence[Trial]], dict[str, Any] | None]


def store() -> AllowanceStore:
    """The user's allowances, beside their cached profiles."""

    return AllowanceStore(cache_folder("allowances"))


def device_name(config: RunConfig, device_type: str) -> str | None:
    """Name under which a device's allowance is kept; ``None`` for a GPU that is not there."""
    if device_type == "cpu":
        return "cpu"
    import torch

    index = int(config.device.partition(":")[2] or 0)
    return str(torch.cuda.get_device_name(index)) if index < torch.cuda.device_count() else None


def allowance_for(config: RunConfig, device_type: str, begun: Iterable[Path] = ()) -> Allowance | None:
    """The allowance of a run: what its folder began with, else what is kept of the device; ``None``: what is assumed.

    Args:
        config: The configuration.
        device_type: ``"cpu"`` or ``"cuda"``.
        begun: Folders of runs that may have begun.

    Raises:
        JournalError: If a journal can't be read.
    """
    if not config.memory.calibrate:
        return None
    for folder in begun:
        if (folder / JOURNAL_NAME).exists():
            kept = load_study(folder).header.get("allowance")
            return None if kept is None else Allowance(**kept)
    name = device_name(config, device_type)
    return None if name is None else store().load(name)


def make_fold(config: RunConfig, memory: MemoryModel, space: SearchSpace) -> Fold | None:
    """What folds a run's measured peaks into the device's allowance; ``None`` where that is not wanted, or the budget
    bounds stored bytes, which no allocator has a part in."""
    device_type = memory.shape.device
    name = device_name(config, device_type) if config.memory.calibrate and memory.scope == "peak" else None
    if name is None:
        return None
    alive = BytesPredictor(replace(memory, allowance=Allowance(0, 0)), space)
    twice = BytesPredictor(replace(memory, allowance=Allowance(0, PPM)), space)  # transient bytes count again

    def keep(evaluations: Sequence[Trial]) -> dict[str, Any] | None:
        excesses = [Excess(alive(e.allocation), twice(e.allocation) - alive(e.allocation), e.result.measured_bytes)
                    for e in evaluations if e.result.measured_bytes is not None]
        if not excesses:
            return None
        before = store().load(name) or ASSUMED[device_type]
        after = fold(before, device_type, excesses)
        try:
            store().keep(name, after)
        except OSError as error:
            log.warning("the allowance of %s can't be kept in %s: %s", name, store().folder, error)
            return None
        return {"device": name, "measured": len(excesses), "fixed_bytes": after.fixed_bytes,
                "share_ppm": after.share_ppm, "measurements": after.measurements}

    return keep
