"""How a CPU computes: torch's threads, and loops over single numbers, compiled by numba."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ANY_ORDER = ("contract", "reassoc", "nsz")
"""For ``compiled``: products and sums in any order and fused, so that loops of sums run over vectors; NaN stays NaN."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one of torch's threads within the block.

    For work in many short pieces, of which a second thread saves little, and which it turns into waiting where another
    process keeps one of the cores busy: eigenvalues of a profile took two minutes in place of five seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
