"""Notices of third-party packages that do not concern this project, silenced at their source and one by one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Without(logging.Filter):
    """Drops the records whose format string starts with one given text."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.start)


_FUSED = _Without("Failed to load CPU gemm_4bit_forward")


def hush_bitsandbytes() -> None:
    """Before the first import of bitsandbytes: no notice of a fused inference kernel that training never calls."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_FUSED)  # adding it twice has no effect


@contextmanager
def hush_hqq() -> Iterator[None]:
    """Around the first import of HQQ: it decorates with ``torch.compile``, whose own imports use old TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit\.script.*", category=DeprecationWarning)
        yield
