"""Bytes that a device's allocator needs beyond the live ones: a share of transient bytes, and a fixed sum.

A budget bounds the bytes that CUDA's caching allocator reserves. A trial that shows an assumption to be too small
raises it for the rest of its run (``study.setting.Headroom``).
"""

from dataclasses import dataclass

PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes beyond the live ones: ``fixed_bytes`` (the matrix library's workspace), and ``share_ppm`` millionths of all
    bytes that are not resident, lost to fragmentation."""

    fixed_bytes: int
    share_ppm: int


ASSUMED = {"cpu": Allowance(0, 0), "cuda": Allowance(128 * 2**20, 72_000),
           "cuda, checkpointed": Allowance(176 * 2**20, 135_000)}
"""By ``TrainShape.allocator``; those of CUDA cover the simulated allocator with expandable segments
(``bench.memory.allocator``). A recomputed layer's few large tensors leave larger gaps. A CUDA context lies outside the
allocator and does not count."""
