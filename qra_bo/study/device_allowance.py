"""What this device's allocator needs, from the peaks that runs measured on it: ``memory.calibrate``.

A run starts with what earlier runs on the device left (and keeps that to its end, resumed or not, so that its
predictions don't change under it); when it ends, its own measured peaks are folded in for the next.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qra_bo.config import RunConfig
from qra_bo.memory.allowance import ASSUMED, PPM, Allowance, AllowanceStore, Excess, fold
from qra_bo.study.events import Folded
from qra_bo.study.setting import BytesPredictor, Setting
from qra_bo.study.state import begun_study
from qra_bo.trials import Trial
from qra_bo.utils.files import cache_folder

log = logging.getLogger(__name__)


def store() -> AllowanceStore:
    """Return the allowances that the user's runs have left on this machine."""
    return AllowanceStore(cache_folder("allowances"))


def _device_name(config: RunConfig, device_type: str) -> str | None:
    """Return the name under which a device's allowance is kept; ``None`` for a GPU that is not there."""
    if device_type == "cpu":
        return "cpu"
    import torch  # task=memory and a simulation do without it
    index = int(config.device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        return None
    return f"{torch.cuda.get_device_name(index)}{', checkpointed' if config.train.checkpointing else ''}"


def allowance_for(config: RunConfig, device_type: str, folder: Path | None = None) -> Allowance | None:
    """Return the allowance of a run: that of its journal in ``folder``, else the one kept of the device (``"cpu"`` or
    ``"cuda"``); ``None``: assumed. Raises ``JournalError`` if a journal can't be read."""
    if not config.memory.calibrate:
        return None
    if folder is not None and (study := begun_study(folder)) is not None:
        return study.header.allowance
    name = _device_name(config, device_type)
    return None if name is None else store().load(name)


def fold_peaks(setting: Setting, trials: Sequence[Trial]) -> Folded | None:
    """Fold measured peaks of ``trials`` into the device's allowance; return the journal's event, or ``None`` where
    nothing was measured, calibration is off, or the budget bounds stored bytes, which need no allocator."""
    memory, device_type = setting.memory, setting.memory.shape.device
    calibrated = setting.config.oracle.trains and setting.config.memory.calibrate and memory.scope == "peak"
    name = _device_name(setting.config, device_type) if calibrated else None
    if name is None:
        return None
    alive = BytesPredictor(replace(memory, allowance=Allowance(0, 0)), setting.space)
    twice = BytesPredictor(replace(memory, allowance=Allowance(0, PPM)), setting.space)  # transient bytes count again
    excesses = [Excess(alive(e.allocation), twice(e.allocation) - alive(e.allocation), e.result.measured_bytes)
                for e in trials if e.result.measured_bytes is not None]
    if not excesses:
        return None
    kind = memory.shape.allocator
    after = fold(store().load(name) or ASSUMED[kind], kind, excesses)
    try:
        store().keep(name, after)
    except OSError as error:
        log.warning("the allowance of %s can't be kept in %s: %s", name, store().folder, error)
        return None
    return Folded(name, len(excesses), after, trials[-1].id)
