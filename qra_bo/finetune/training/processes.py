"""Processes of this machine that train one model together, each with a device and a share of every step's sequences."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from qra_bo.oracle.protocol import StopRequested


class Processes(NamedTuple):
    """One of ``size`` processes that train one model: the first (``number`` 0) evaluates, keeps checkpoints, saves."""

    number: int = 0
    size: int = 1

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Return the sum of each number over all processes."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(sums)
        return tuple(sums.tolist())

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returns in the first process, where alone it is called."""
        found = [None if self.number else make()]
        if self.size > 1:
            dist.broadcast_object_list(found, device=torch.device("cpu"))
        return found[0]


ALONE = Processes()


@contextmanager
def joined(share: Mapping[str, Any]) -> Iterator[Processes]:
    """Join the processes that share a call, see ``PoolExecutor.call``; after an error the driver has to end them."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no other machine takes part
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", f"file://{share['folder']}/meet",
                            timedelta(days=365), share["size"], share["number"])  # the driver ends what hangs
    try:
        yield Processes(share["number"], share["size"])
    except RuntimeError:
        time.sleep(5.0)  # another process's end may have caused it: the driver hears of that first
        raise
    except StopRequested:  # all stop together
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
