"""Synthetic texts and a byte tokenizer, for tests that need no quality."""

from typing import Any

from qra_bo.finetune.data.batches import named_rng
from qra_bo.finetune.data.records import Record

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

VOCABULARY = 512
"""Rows of the tiny model's embedding; ids from 258 on are unused."""


def byte_tokenizer() -> Any:
    """Return a tokenizer of transformers: UTF-8 bytes as ids 0 to 255, then pad (256) and end (257)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    core = Tokenizer(models.BPE(vocab={c: byte for byte, c in bytes_to_unicode().items()}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>",
                                   clean_up_tokenization_spaces=False)


def tiny_records(n: int, seed: int) -> list[Record]:
    """Return ``n`` distinct short texts that count in words, each by its own step."""
    rng = named_rng("tiny", seed)
    seen: dict[Record, None] = {}
    while len(seen) < n:
        start, stride = (int(v) for v in rng.integers(1, 10, size=2))
        length = int(rng.integers(4, 12))
        tag = int(rng.integers(0, 10_000))
        words = " ".join(WORDS[(start + stride * i) % 10] for i in range(length))
        seen[Record("", f"{tag}: {words}.\n")] = None
    return list(seen)
