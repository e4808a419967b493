"""Notices of third-party packages that do not concern this project, silenced at their source and one by one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


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


@contextmanager
def hush_gguf() -> Iterator[None]:
    """Around the reading of a GGUF file: transformers draws a bar there that its own switch for bars does not reach."""
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn = getattr(reader, "tqdm", None)
    if drawn is None:  # a release that draws it otherwise, or none
        yield
        return
    reader.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        reader.tqdm = drawn


@contextmanager
def without_bars() -> Iterator[None]:
    """Around transformers' loading and saving: no bars; whoever had them on has them on again afterwards."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
