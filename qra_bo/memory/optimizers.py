"""Bytes of optimiser states: arithmetic that equals, to the byte, what torch and bitsandbytes keep.

| optimiser        | states of a tensor of ``n`` elements                                                       |
|------------------|--------------------------------------------------------------------------------------------|
| adamw            | two fp32 moments, ``8 n``, and an fp32 count of steps (torch, fused)                       |
| adamw_8bit       | from 4,096 elements: two byte-wide moments, ``2 n``, and two fp32 scales a block of 256;   |
|                  | below: two fp32 moments, ``8 n`` (bitsandbytes; its count of steps is no tensor)           |
"""

from collections.abc import Iterable

import numpy as np

from qra_bo.space import IntArray

OPTIMIZERS = ("adamw", "adamw_8bit")
LEAST_8BIT, BLOCK = 4096, 256
MAPS_BYTES = 2 * 256 * 4
"""The two tables of what the 256 codes of a moment mean, shared by all units."""


def state_bytes(kind: str, numel: IntArray) -> IntArray:
    """Return the bytes of optimiser states of tensors with ``numel`` elements (any shape), in their shape.

    Two moments take 8 bytes an element, or 2 where they are quantised to 8 bits with two scales per block. Tensors
    below ``LEAST_8BIT`` elements keep fp32 moments. ``kind`` is one of ``OPTIMIZERS``.
    """
    narrow = (kind == "adamw_8bit") & (numel >= LEAST_8BIT)
    beside = np.where(narrow, 8 * -(-numel // BLOCK), 4 if kind == "adamw" else 0)
    return np.where(narrow, 2, 8) * numel + beside


def shrinking_ranks(kind: str, sides: Iterable[int]) -> list[int]:
    """Return the ranks from which on the states of an adapter's tensor, ``rank`` times one of ``sides`` elements, take
    fewer bytes than at the rank below."""
    return sorted({-(-LEAST_8BIT // side) for side in sides}) if kind == "adamw_8bit" else []


def shared_bytes(kind: str) -> int:
    """Return the bytes that all units share."""
    return MAPS_BYTES if kind == "adamw_8bit" else 0


def update_bytes(kind: str, numel: IntArray, device: str) -> IntArray:
    """Bytes needed in passing while a tensor of ``numel`` elements is updated, in the shape of ``numel``.

    GPU kernels and torch's fused ones need none. On a CPU bitsandbytes unpacks both moments to fp32 beside a copy of
    the gradient, the root of the second moment and what it is divided to (20 bytes an element); of fp32 moments it
    needs the copy of the gradient, the root and its sum, or the sum and the update (12 bytes).
    """
    if device != "cpu" or kind == "adamw":
        return np.zeros_like(numel)
    return np.where((kind == "adamw_8bit") & (numel >= LEAST_8BIT), 20, 12) * numel
