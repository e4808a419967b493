"""Token blocks of one length from records: encoded, cut, and packed several to a row."""

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import Refused
from qra_bo.finetune.data.records import NO_LOSS, BlockFacts, DataSplits, Record, TokenBlocks, named_rng, texts_sha256
from qra_bo.utils.errors import DataError

Piece = tuple[list[int], list[int]]
"""Token ids of at most a row's length, and their labels."""


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of every text, without special tokens."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def encode_pairs(tokenizer: Any, records: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of prompt and target of every record, without special tokens.

    Some tokenizers put a space before every text (SentencePiece's of Llama 2, Mistral and Phi-3). A target that follows
    a prompt gets none: it is encoded behind a line break, whose tokens are dropped.
    """
    prompts, targets = encode(tokenizer, [r.prompt for r in records]), encode(tokenizer, [r.target for r in records])
    lead, alone, behind = encode(tokenizer, ["\n", "x", "\nx"])
    if behind != lead + alone:
        whole = encode(tokenizer, [f"\n{r.target}" for r in records])
        targets = [ids[len(lead):] if r.prompt and ids[:len(lead)] == lead else target
                   for r, ids, target in zip(records, whole, targets, strict=True)]
    return list(zip(prompts, targets, strict=True))


def beginning_of(tokenizer: Any) -> list[int]:
    """Return the token with which the tokenizer begins every text, as servers and evaluations do too; empty for none.
    """
    ids: list[int] = tokenizer("")["input_ids"][:1]
    return ids if ids == [tokenizer.bos_token_id] else []


def pieces_of(prompt: Sequence[int], target: Sequence[int], length: int, begin: Sequence[int] = ()) -> list[Piece]:
    """Cut one encoded record into pieces ``(ids, labels)`` of at most ``length`` tokens.

    A plain text (no prompt) becomes consecutive slices. A record with a prompt stays one piece: where it is too
    long the prompt keeps its last ``length // 2`` tokens at least, and the target is cut at its end. ``begin`` comes
    first, is never cut, and takes no loss.
    """
    if not prompt:
        ids, labels = [*begin, *target], [NO_LOSS] * len(begin) + list(target)
        return [(ids[i:i + length], labels[i:i + length]) for i in range(0, len(ids), length)]
    room = max(length // 2, length - len(target)) - len(begin)
    kept = [*begin, *prompt[-room:]] if room > 0 else list(begin)
    ids = (kept + list(target))[:length]
    return [(ids, ([NO_LOSS] * len(kept) + list(target))[:length])]


def piece_of_conversation(ids: Sequence[int], trained: Sequence[bool], length: int) -> Piece:
    """Return an encoded conversation cut at its end to ``length`` tokens.

    Where none of its answers would be kept it is cut at its front too: half a row before the first answer is kept.
    """
    first = trained.index(True) if True in trained else 0
    start = 0 if first < length else min(first - length // 2, len(ids) - length)
    window = slice(start, start + length)
    kept = list(ids[window])
    return kept, [token if loss else NO_LOSS for token, loss in zip(kept, trained[window], strict=True)]


def pack(tokenizer: Any, records: Sequence[Record | Conversation], length: int, seed: int,
         isolate: bool = False, refused: Refused | None = None) -> TokenBlocks:
    """Pack ``records`` into shuffled sequences; an end token closes every text where the tokenizer has one.

    A text begins as the tokenizer begins it, and has that token and the end token once where it brings its own. A
    conversation is what its chat template writes; in the plain template it begins as a text does. Pieces are packed by
    best fit in decreasing order, so that records stay whole and little is padded. The order of the rows is a shuffle
    drawn from ``seed``, so that the first ``n`` rows are a fair sample. With ``isolate`` every piece has positions of
    its own, from 0, and its first token no label; padding counts as one more piece.

    Raises:
        DataError: If a chat template can't render a conversation; such ones are noted in ``refused`` where it is given.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    pad = next((int(t) for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    texts = [r for r in records if isinstance(r, Record)]
    pieces: list[Piece] = []
    ends = list[int]()  # of the pieces of each record
    sizes, answers = [], 0  # of records that can be cut
    begin = beginning_of(tokenizer)
    for prompt, target in encode_pairs(tokenizer, texts):
        if begin and (prompt or target)[:1] == begin:
            del (prompt or target)[0]
        if target[-1:] != end:
            target += end
        pieces += pieces_of(prompt, target, length, begin)
        ends.append(len(pieces))
        sizes += [len(begin) + len(prompt) + len(target)] if prompt else []
        answers += len(target)
    conversations = [r for r in records if isinstance(r, Conversation)]
    if conversations:
        from qra_bo.finetune.data.chat_template import ChatTemplate  # loads transformers, which other texts do without
        template = ChatTemplate(tokenizer)
        first = begin if template.is_plain else []  # a model's own template writes that token itself
        for ids, trained in template.encode(conversations, refused):
            pieces.append(piece_of_conversation([*first, *ids], [False] * len(first) + trained, length))
            ends.append(len(pieces))
            sizes.append(len(first) + len(ids))
            answers += sum(trained)
    bins = _best_fit([len(ids) for ids, _ in pieces], length)
    inputs = np.full((len(bins), length), pad, dtype=np.int64)
    labels = np.full((len(bins), length), NO_LOSS, dtype=np.int64)
    positions = np.tile(np.arange(length, dtype=np.int64), (len(bins), 1)) if isolate else None
    for row, members in enumerate(bins):
        at = 0
        for piece in members:
            ids, goal = pieces[piece]
            inputs[row, at:at + len(ids)] = ids
            labels[row, at:at + len(ids)] = goal
            if positions is not None:
                labels[row, at] = NO_LOSS  # nothing of the piece precedes it
                positions[row, at + len(ids):] = np.arange(length - at - len(ids))
            at += len(ids)
    order = named_rng("pack", seed).permutation(len(bins))
    kept = sum(label != NO_LOSS for _, goal in pieces for label in goal)
    usual = 64 * math.ceil(np.quantile(sizes, 0.95) / 64) if sizes else 0
    facts = BlockFacts(len(records), sum(size > length for size in sizes), answers, answers - kept,
                       sum(len(ids) for ids, _ in pieces), usual)
    used = np.array([sum(len(pieces[piece][0]) for piece in members) for members in bins], dtype=np.int64)
    longest = [max(members, key=lambda piece: len(pieces[piece][0])) for members in bins]
    return TokenBlocks(inputs[order], labels[order], None if positions is None else positions[order], facts,
                       used[order], np.searchsorted(ends, longest, side="right")[order])


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices whose sizes add up to at most ``capacity``: best fit, largest first, ties in order."""
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect.bisect_left(open_bins, (sizes[index], -1))
        if at < len(open_bins):
            room, chosen = open_bins.pop(at)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        if room > sizes[index]:
            bisect.insort(open_bins, (room - sizes[index], chosen))
    return bins


def assemble(tokenizer: Any, splits: Sequence[Sequence[Record | Conversation]], length: int, calibration: int,
             seed: int, source: str, isolate: bool = False) -> DataSplits:
    """Return token blocks of the records of (train, validation, test); ``isolate``: see ``pack``.

    Raises:
        DataError: If a split holds no token on which a loss could be taken, or conversations can't be rendered.
    """
    refused = Refused()
    packed = [pack(tokenizer, split, length, seed, isolate, refused) for split in splits]
    refused.check()
    for name, split, blocks in zip(("training", "validation", "test"), splits, packed, strict=True):
        if not blocks.n_targets:
            raise DataError(f"the {name} split of {source} has {len(split)} records and no target token; "
                            "give more records, or a larger data.held_out")
    train, validation, test = packed
    kinds, begin = {type(record) for split in splits for record in split}, "".join(map(str, beginning_of(tokenizer)))
    sources, plain = begin * (Record in kinds), False
    if chats := Conversation in kinds:
        from qra_bo.finetune.data.chat_template import ChatTemplate  # see pack
        template = ChatTemplate(tokenizer)
        plain = template.is_plain
        sources += template.source() + begin * plain
    return DataSplits(train, validation, test, train.take(calibration), texts_sha256(splits, sources), source,
                      chats=chats, plain_template=plain)
