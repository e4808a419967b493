"""Torch's threads on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
