"""Synthetic bytes and a byte tokenizer: they test the plumbing and say nothing about quality."""

from collections.abc import Sequence
from typing import Any

from qra_bo.oracle.data.batches import named_rng
from qra_bo.oracle.data.records import Record

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class ByteTokenizer:
    """UTF-8 bytes as token ids 0 to 255, then pad (256) and end (257); ids up to 511 are unused.

    It answers the part of a transformers tokenizer that data loading uses.
    """

    vocab_size = 512
    pad_token_id = 256
    eos_token_id = 257

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = False,
                 verbose: bool = False) -> dict[str, Any]:
        """``{"input_ids": ids}``, a list of ids for each text of a list."""
        if isinstance(text, str):
            return {"input_ids": list(text.encode())}
        return {"input_ids": [list(t.encode()) for t in text]}

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special and unused ones are left out."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def tiny_records(n: int, seed: int) -> list[Record]:
    """``n`` distinct little texts that count on in words, each by its own step: learnable, and different."""
    rng = named_rng("tiny", seed)
    seen: dict[Record, None] = {}
    while len(seen) < n:
        start, stride = (int(v) for v in rng.integers(1, 10, size=2))
        length = int(rng.integers(4, 12))
        tag = int(rng.integers(0, 10_000))
        words = " ".join(WORDS[(start + stride * i) % 10] for i in range(length))
        seen[Record("", f"{tag}: {words}.\n")] = None
    return list(seen)
