"""Bytes that a device's allocator needs beyond the live ones: a share of transient bytes, and a fixed sum.

A budget bounds the bytes that CUDA's caching allocator reserves. The share is an assumption until the device has been
measured. With ``memory.calibrate=true`` measured peaks replace it;
they are kept in one small file a device, in the user's cache.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from qra_bo.utils.files import read_sealed, write_sealed

log = logging.getLogger(__name__)
SCHEMA_VERSION = 1
PPM = 1_000_000
ENOUGH = 8
"""Measurements after which a device's own share replaces the assumed one; fewer can only raise it."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes beyond the live ones: ``fixed_bytes`` (the matrix library's workspace), and ``share_ppm`` millionths of all
    bytes that are not resident, lost to fragmentation; from so many measured peaks, or assumed (0)."""

    fixed_bytes: int
    share_ppm: int
    measurements: int = 0


ASSUMED = {"cpu": Allowance(0, 0), "cuda": Allowance(128 * 2**20, 72_000),
           "cuda, checkpointed": Allowance(176 * 2**20, 135_000)}
"""For devices that were not measured, by ``TrainShape.allocator``; those of CUDA cover the simulated allocator with
expandable segments (``bench.memory.allocator``). A recomputed layer's few large tensors leave larger gaps. A CUDA
context lies outside the allocator and does not count."""


@dataclass(frozen=True, slots=True)
class Excess:
    """One measured peak (on CUDA, reserved by the allocator) and ``alive``, its prediction without an allowance, of
    which ``transient`` are not resident."""

    alive: int
    transient: int
    measured: int


def fold(before: Allowance, allocator: str, excesses: Iterable[Excess]) -> Allowance:
    """Add measurements to ``before``: the least share that covers all of them.

    The assumed share of ``allocator`` is dropped once ``ENOUGH`` peaks are known. A share never falls below an earlier
    measurement, but for those that the assumed share hid.
    """
    assumed = ASSUMED[allocator]
    seen = [max(0, e.measured - e.alive - assumed.fixed_bytes) * PPM // e.transient + 1
            if e.measured - e.alive > assumed.fixed_bytes else 0 for e in excesses if e.transient > 0]
    if not seen:
        return before
    count = before.measurements + len(seen)
    known = before.share_ppm if before.measurements >= ENOUGH or before.share_ppm > assumed.share_ppm else 0
    least = 0 if count >= ENOUGH else max(assumed.share_ppm, before.share_ppm)
    return Allowance(assumed.fixed_bytes, max(*seen, known, least), count)


@dataclass(frozen=True)
class AllowanceStore:
    """Allowances by device name, one JSON file each in ``folder``; a file that can't be read counts as none."""

    folder: Path

    def path(self, device: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"

    def load(self, device: str) -> Allowance | None:
        try:
            data = read_sealed(self.path(device))
            if data["schema_version"] != SCHEMA_VERSION or data["device"] != device:
                return None
            return Allowance(*(int(data[key]) for key in ("fixed_bytes", "share_ppm", "measurements")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the allowance in %s can't be used and is measured anew: %s", self.path(device), error)
            return None

    def keep(self, device: str, allowance: Allowance) -> None:
        """Write a device's allowance, atomically; raises ``OSError``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sealed(self.path(device), {"schema_version": SCHEMA_VERSION, "device": device, **asdict(allowance)})
