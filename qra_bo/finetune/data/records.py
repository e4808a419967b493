"""Packed token sequences of one length from records of text, with labels only where a loss is taken."""

import bisect
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qra_bo.utils.errors import DataError

IntArray = npt.NDArray[np.int64]
NO_LOSS = -100


@dataclass(frozen=True, slots=True)
class Record:
    """One example: the loss is taken on ``target`` alone; a plain text has an empty ``prompt``."""

    prompt: str
    target: str


@dataclass(frozen=True)
class TokenBlocks:
    """Packed sequences.

    Args:
        input_ids: ``n x length``; padding stands at the end of a row alone, so a causal model never sees it.
        labels: ``n x length``, -100 on prompts and padding.
        cut: Records with a prompt that did not fit into ``length`` tokens whole.
    """

    input_ids: IntArray
    labels: IntArray
    cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_targets(self) -> int:
        """Tokens on which a loss is taken (the first of each row has no predecessor)."""
        return int((self.labels[:, 1:] != NO_LOSS).sum())

    def take(self, n: int) -> "TokenBlocks":
        """Return the first ``n`` sequences."""
        return TokenBlocks(self.input_ids[:n], self.labels[:n])


@dataclass(frozen=True)
class DataSplits:
    """A data set, ready for training.

    Args:
        train: Sequences for fine-tuning.
        validation: Sequences for the losses of a search.
        test: Sequences for the reported losses alone.
        calibration: The sequences of ``train`` on which sensitivities are measured.
        sha256: Hash of the texts of all splits.
        source: Name of the source.
    """

    train: TokenBlocks
    validation: TokenBlocks
    test: TokenBlocks
    calibration: TokenBlocks
    sha256: str
    source: str

    @property
    def n_tokens(self) -> dict[str, int]:
        """Target tokens of every split."""
        return {name: blocks.n_targets for name, blocks in
                (("train", self.train), ("validation", self.validation), ("test", self.test))}


def texts_sha256(splits: Sequence[Sequence[Record]]) -> str:
    """Return the hash of the records of every split, in order."""
    text = json.dumps([[[r.prompt, r.target] for r in split] for split in splits], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of every text, without special tokens."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def pieces_of(prompt: Sequence[int], target: Sequence[int], length: int) -> list[tuple[list[int], list[int]]]:
    """Cut one encoded record into pieces ``(ids, labels)`` of at most ``length`` tokens.

    A plain text (no prompt) becomes consecutive slices. A record with a prompt stays one piece: where it is too
    long the prompt keeps its last ``length // 2`` tokens at least, and the target is cut at its end.
    """
    if not prompt:
        return [(list(target[i:i + length]),) * 2 for i in range(0, len(target), length)]
    room = max(length // 2, length - len(target))
    kept = list(prompt[-room:])
    ids = (kept + list(target))[:length]
    return [(ids, ([NO_LOSS] * len(kept) + list(target))[:length])]


def pack(tokenizer: Any, records: Sequence[Record], length: int, seed: int) -> TokenBlocks:
    """Pack ``records`` into shuffled sequences; an end token closes every record where the tokenizer has one.

    Pieces are packed by best fit in decreasing order, so that records stay whole and little is padded. The order
    of the rows is a shuffle drawn from ``seed``, so that the first ``n`` rows are a fair sample.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    pad = next((int(t) for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    prompts = encode(tokenizer, [r.prompt for r in records])
    targets = encode(tokenizer, [r.target for r in records])
    pieces = [piece for prompt, target in zip(prompts, targets, strict=True)
              for piece in pieces_of(prompt, target + end, length)]
    bins = _best_fit([len(ids) for ids, _ in pieces], length)
    inputs = np.full((len(bins), length), pad, dtype=np.int64)
    labels = np.full((len(bins), length), NO_LOSS, dtype=np.int64)
    for row, members in enumerate(bins):
        at = 0
        for piece in members:
            ids, goal = pieces[piece]
            inputs[row, at:at + len(ids)] = ids
            labels[row, at:at + len(ids)] = goal
            at += len(ids)
    order = named_rng("pack", seed).permutation(len(bins))
    cut = sum(bool(p) and len(p) + len(t) + len(end) > length for p, t in zip(prompts, targets, strict=True))
    return TokenBlocks(inputs[order], labels[order], cut)


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


def assemble(tokenizer: Any, splits: Sequence[Sequence[Record]], length: int, calibration: int, seed: int,
             source: str) -> DataSplits:
    """Return token blocks of the records of (train, validation, test).

    Raises:
        DataError: If a split holds no token on which a loss could be taken.
    """
    packed = [pack(tokenizer, split, length, seed) for split in splits]
    for name, split, blocks in zip(("training", "validation", "test"), splits, packed, strict=True):
        if not blocks.n_targets:
            raise DataError(f"the {name} split of {source} has {len(split)} records and no target token; "
                            "give more records, or a larger data.held_out")
    train, validation, test = packed
    return DataSplits(train, validation, test, train.take(calibration), texts_sha256(splits), source)


def split_records(records: Sequence[Record], held_out: float, seed: int,
                  source: str) -> tuple[list[Record], list[Record], list[Record]]:
    """Shuffle and split into train, validation and test; equal records always share a split.

    ``held_out`` is the share of validation, and again of test; each has at least one record. Messages name ``source``.

    Raises:
        DataError: If there are fewer than three distinct records.
    """
    distinct = list(dict.fromkeys(records))
    if len(distinct) < 3:
        raise DataError(f"{source} has {len(distinct)} distinct records; at least 3 are needed (training, validation, "
                        "test), and some hundreds for a useful model")
    n_held = min(max(1, round(held_out * len(distinct))), (len(distinct) - 1) // 2)
    order = [distinct[i] for i in named_rng("split", seed).permutation(len(distinct))]
    return order[2 * n_held:], order[:n_held], order[n_held:2 * n_held]


def named_rng(name: str, seed: int) -> np.random.Generator:
    """Return the random stream of one purpose, independent of every other name's under the same seed."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=tuple(name.encode())))


def batches(n_blocks: int, batch: int, steps: int, seed: int) -> IntArray:
    """Return the rows of every step's batch, ``steps x batch``.

    Each epoch is a fresh shuffle of all rows; a batch may span two epochs. A shorter run sees a prefix of what a
    longer one with the same seed sees.
    """
    rng = named_rng("batches", seed)
    epochs = -(-steps * batch // n_blocks)
    order = np.concatenate([rng.permutation(n_blocks) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch).astype(np.int64)
