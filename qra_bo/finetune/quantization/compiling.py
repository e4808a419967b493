"""Loops over single numbers, compiled for a CPU by numba."""

from collections.abc import Callable, Collection
from typing import Any


def compiled(loop: Callable[..., None], fastmath: Collection[str] = ()) -> Any:
    """Return ``loop`` compiled at its first call, kept on disk where that can be; it needs no lock of the interpreter.

    ``fastmath`` names what its arithmetic may do; by default nothing that rounds in another way. A closure may hold
    numbers alone: what holds other functions is compiled again in every process.
    """
    import numba  # heavy to import
    options = {"nogil": True, "fastmath": set(fastmath)}
    try:
        return numba.njit(loop, cache=True, **options)
    except RuntimeError:  # no folder for it can be written
        return numba.njit(loop, **options)
