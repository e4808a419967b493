"""Token blocks of a data set's three splits, from its options; records of the hub, and synthetic ones for tests."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import REPEATED, read_rows, records_of
from qra_bo.finetune.data.options import DataConfig, HubData, JsonlData, PlaysData, TinyData, UserData
from qra_bo.finetune.data.packing import assemble, pack
from qra_bo.finetune.data.plays import PACKAGE, VERSION, play_records
from qra_bo.finetune.data.records import NO_LOSS, DataSplits, Record, named_rng, split_records
from qra_bo.utils.errors import DataError


def hub_rows(cfg: HubData) -> Iterator[tuple[str, Any]]:
    """Return the rows of a split of a hub data set in order, each with the name of its place.

    Data sets that are programs are not run: ``datasets`` no longer can.

    Raises:
        DataError: If the hub or the data set can't be reached.
    """
    import datasets  # a second that other data do without
    name, split = str(cfg.path), cfg.split
    try:
        if cfg.subset is not None and cfg.subset.endswith((".jsonl", ".json")):
            revision = f"@{cfg.revision}" if cfg.revision else ""
            rows: Any = datasets.load_dataset("json", data_files=f"hf://datasets/{name}{revision}/{cfg.subset}",
                                              split=split)
        else:
            rows = datasets.load_dataset(name, cfg.subset, revision=cfg.revision, split=split)
    except Exception as error:  # the package raises whatever its transport raises: all mean that the data is not there
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(line.strip() for line in lines[:2])  # the second line names the subsets to choose from
        raise DataError(f"the split {split!r} of the data set {name!r} can't be fetched from the hub "
                        f"({type(error).__name__}: {reason}); check data.path, data.subset and data.split; with no "
                        "network use the embedded data=plays, or a file with data=jsonl data.path=FILE") from error
    return ((f"{name}, record {i + 1}", rows[i]) for i in range(len(rows)))


def read_data(cfg: TinyData | JsonlData | HubData, seed: int = 0) -> tuple[list[Record | Conversation], Counter[str]]:
    """Return the records of a data set, and how many were left out, by reason.

    Raises:
        DataError: If the data is missing, malformed or empty.
    """
    if isinstance(cfg, TinyData):
        return list(tiny_records(cfg.max_records or 512, seed)), Counter()
    rows = hub_rows(cfg) if isinstance(cfg, HubData) else read_rows(cfg.path)
    return records_of(rows, cfg.max_records, str(cfg.path), cfg.chat == "last")


def split_data(cfg: DataConfig, seed: int = 0,
               read: tuple[list[Record | Conversation], Counter[str]] | None = None) \
        -> tuple[str, tuple[Sequence[Record | Conversation], ...], Counter[str]]:
    """Return a data set's name and splits, and how many records were left out, by reason: as in ``load_data``."""
    if isinstance(cfg, PlaysData):
        return f"plays of {PACKAGE} {VERSION}", play_records(), Counter()
    source, (records, left_out) = str(getattr(cfg, "path", None) or cfg.name), read or read_data(cfg, seed)
    splits = split_records(records, cfg.held_out, seed, source)
    return source, splits, left_out + Counter({REPEATED: len(records) - sum(map(len, splits))})


def load_data(data_cfg: DataConfig, tokenizer: Any, length: int, seed: int = 0, isolate: bool = False,
              read: tuple[list[Record | Conversation], Counter[str]] | None = None) -> DataSplits:
    """Read, split, tokenise and pack into sequences of ``length`` tokens; ``isolate``: see ``packing.pack``.

    ``seed`` splits the records and orders the sequences; all searches share it, and so their data. ``read`` is what
    ``read_data`` gave where that was done before.

    Raises:
        DataError: If the data is missing, malformed or too small, or too much of its answers would be cut.
    """
    source, splits, left_out = split_data(data_cfg, seed, read)
    if not isinstance(data_cfg, UserData):
        return assemble(tokenizer, splits, length, data_cfg.calibration, seed, source, isolate)
    rendered = [render(split, data_cfg.render, tokenizer) for split in splits]
    data = assemble(tokenizer, rendered, length, data_cfg.calibration, seed, source, isolate)
    if (share := data.train.facts.cut_share) > data_cfg.max_cut:
        raise DataError(
            f"data.max_cut accepts {data_cfg.max_cut:.0%} of cut answer tokens; of {source} "
            f"{data.train.facts.told_cut(length)}. Raise train.length, which takes more memory, split long records, "
            f"or accept it with data.max_cut={math.ceil(100 * share) / 100:g}")
    before, after = (sum(isinstance(r, Record) and bool(r.asked) for part in parts for r in part)
                     for parts in (splits, rendered))
    how = "chat" if after < before else "plain" if before else ""
    return replace(data, example=_example(tokenizer, rendered[0][0], length), left_out=left_out, render=how)


def render(records: Sequence[Record | Conversation], how: str, tokenizer: Any) -> list[Record | Conversation]:
    """Return the records with instructions, questions and prompts as chats, where ``data.render`` says ``how``.

    A prompt that holds special tokens of the tokenizer is rendered already, and stays as it is.
    """
    if how == "plain" or (how == "auto" and not (tokenizer.chat_template and tokenizer.is_fast)):
        return list(records)
    special = tuple(tokenizer.all_special_tokens)
    return [record.conversation if isinstance(record, Record) and record.asked
            and not any(token in record.asked for token in special) else record for record in records]


def check_tokens(data: DataSplits, tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a text with tokens beyond the ``rows`` of the model's embedding, which a device reports as a crash.

    Raises:
        DataError: If the tokenizer has more tokens than the model, and the text, or its padding, one of them.
    """
    largest = max(int(blocks.input_ids.max()) for blocks in (data.train, data.validation, data.test))
    if largest >= rows:
        raise DataError(f"the text of {data.source} has the token {largest} ({tokenizer.decode([largest])!r}), and the "
                        f"embedding of {name!r} has {rows} rows; take the tokenizer that the model was trained with, "
                        "or save the model after resize_token_embeddings(len(tokenizer))")


def _example(tokenizer: Any, record: Record | Conversation, length: int) -> tuple[tuple[str, bool], ...]:
    """Return a record's text as it is trained, in parts with and without a loss; of a long text its first row."""
    blocks = pack(tokenizer, [record], length, 0)
    tokens = zip(blocks.input_ids[0], blocks.labels[0], strict=True) if len(blocks) > 1 else \
        zip(blocks.input_ids[0][:blocks.facts.used_tokens], blocks.labels[0], strict=False)
    return tuple((tokenizer.decode([int(token) for token, _ in group]), trained)
                 for trained, group in itertools.groupby(tokens, lambda pair: bool(pair[1] != NO_LOSS)))


def data_notes(data_cfg: DataConfig, data: DataSplits) -> list[str]:
    """Return the notes on the user's data for the report: records left out, a missing template."""
    if not isinstance(data_cfg, UserData):
        return []
    notes = [f"{n:,} records of {data.source} are left out, because {reason}" for reason, n in data.left_out.items()]
    if data.plain_template:
        notes.append("the tokenizer has no chat template, so turns stand as 'User: ...' and 'Assistant: ...', a line "
                     "each; ask the model in this form")
    return notes


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

def byte_tokenizer() -> Any:
    """Return a tokenizer of transformers: UTF-8 bytes as ids 0 to 255, then end (256) and pad (257)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # for the tiny model alone
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
