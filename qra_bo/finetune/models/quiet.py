"""Notices of third-party packages that do not concern this project, silenced one by one at their source."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def hush_bitsandbytes() -> None:
    """Drop bitsandbytes' notice of a fused inference kernel that training never calls; before its first import."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_notice)  # adding it twice has no effect


def _is_no_notice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bars while transformers loads and saves; the user's own setting comes back afterwards."""
    from transformers.utils import logging as transformers_logging  # heavy, and not needed to import this module

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def hush_gguf() -> Iterator[None]:
    """Show no bar while a GGUF file is read, which transformers' own switch for bars does not reach."""
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn = getattr(reader, "tqdm", None)
    reader.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        reader.tqdm = drawn
