"""Records of a data set, their splits, and the token blocks that they become."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qra_bo.finetune.data.conversations import Conversation
from qra_bo.utils.errors import DataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
NO_LOSS = -100


@dataclass(frozen=True, slots=True)
class Record:
    """One example: the loss is taken on ``target`` alone.

    Args:
        prompt: Text before the answer; empty for a plain text.
        target: The answer.
        asked: What is asked in ``prompt``, in the user's own words; empty for a plain text.
    """

    prompt: str
    target: str
    asked: str = field(default="", compare=False)

    @property
    def characters(self) -> int:
        """Length of the whole text."""
        return len(self.prompt) + len(self.target)

    @property
    def is_empty(self) -> bool:
        """Whether the target has no text."""
        return not self.target.strip()

    @property
    def conversation(self) -> Conversation:
        """The example as one turn of the user and one of the assistant."""
        turns = [{"role": "user", "content": self.asked}, {"role": "assistant", "content": self.target.strip()}]
        where = f"the record {self.asked[:60]!r}, rendered as a chat (data.render=plain leaves it as it is)"
        return Conversation(json.dumps(turns, ensure_ascii=False), (1,), "", where)


AnyRecord = TypeVar("AnyRecord", bound=Record | Conversation)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What packing did to the records of a split.

    Args:
        records: Their number.
        cut_records: Records that did not fit into a row whole; plain texts are never cut.
        answer_tokens: Tokens on which a loss could be taken.
        cut_tokens: Those of them that were cut off.
        used_tokens: Tokens in the rows that are no padding.
        usual_length: Multiple of 64 tokens that 95 % of the records do not exceed; 0 for plain texts.
    """

    records: int = 0
    cut_records: int = 0
    answer_tokens: int = 0
    cut_tokens: int = 0
    used_tokens: int = 0
    usual_length: int = 0

    @property
    def cut_share(self) -> float:
        """Share of the answer tokens that were cut off."""
        return self.cut_tokens / max(1, self.answer_tokens)

    def told_cut(self, length: int) -> str:
        """Say what rows of ``length`` tokens cut off, and which length keeps most records whole; empty for nothing."""
        keeps = f"; train.length={self.usual_length} keeps 95 % of the records whole"
        return "" if not self.cut_records else (
            f"train.length={length} cuts {self.cut_records / self.records:.0%} of the training records and "
            f"{self.cut_share:.0%} of the answer tokens{keeps if self.usual_length > length else ''}")


@dataclass(frozen=True)
class TokenBlocks:
    """Packed sequences.

    Args:
        input_ids: ``n x length``; padding stands at the end of a row alone, so a causal model never sees it.
        labels: ``n x length``, -100 on prompts and padding.
        positions: ``n x length``, from 0 in every record, where the records of a row are isolated; ``None`` where each
            attends to those before it.
        facts: What was cut and padded.
        used: Tokens of each row before its padding, ``n``; ``None``: all.
        documents: Index of the record that has most of each row's tokens, ``n``; ``None``: each row is of its own.
    """

    input_ids: IntArray
    labels: IntArray
    positions: IntArray | None = None
    facts: BlockFacts = BlockFacts()
    used: IntArray | None = None
    documents: IntArray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_targets(self) -> int:
        """Tokens on which a loss is taken (the first of each row has no predecessor)."""
        return int((self.labels[:, 1:] != NO_LOSS).sum())

    @property
    def is_text(self) -> BoolArray:
        """Where no padding stands, ``n x length``. Padding may be the end token, so that ids alone do not tell."""
        length = self.input_ids.shape[1]
        used = np.full(len(self), length) if self.used is None else self.used
        return np.arange(length) < used[:, None]

    def take(self, n: int, start: int = 0) -> "TokenBlocks":
        """Return ``n`` sequences from ``start``."""
        arrays = {name: part[start:start + n] for name, part in vars(self).items() if isinstance(part, np.ndarray)}
        return replace(self, **arrays, facts=BlockFacts())


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
        example: A training record as the model sees it: its parts, and whether a loss is taken on each.
        left_out: Number of records that were left out, by reason.
        chats: Whether the model sees conversations.
        plain_template: Whether these stand in a plain template, as the tokenizer has none.
        render: ``"chat"`` where instructions, questions and prompts were rendered as chats, ``"plain"`` where not, and
            empty where there are none.
    """

    train: TokenBlocks
    validation: TokenBlocks
    test: TokenBlocks
    calibration: TokenBlocks
    sha256: str
    source: str
    example: tuple[tuple[str, bool], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    chats: bool = False
    plain_template: bool = False
    render: str = ""

    @property
    def n_tokens(self) -> dict[str, int]:
        """Target tokens of every split."""
        return {name: blocks.n_targets for name, blocks in
                (("train", self.train), ("validation", self.validation), ("test", self.test))}


def texts_sha256(splits: Sequence[Sequence[Record | Conversation]], template: str = "") -> str:
    """Return the hash of the records of every split, in order, and of the chat template that renders them."""
    text = json.dumps([[[r.prompt, r.target] if isinstance(r, Record) else
                        [r.messages_json, r.tools_json, list(r.trained)] for r in split] for split in splits],
                      ensure_ascii=False)
    return hashlib.sha256(f"{text}{template}".encode()).hexdigest()


def split_records(records: Sequence[AnyRecord], held_out: float, seed: int,
                  source: str) -> tuple[list[AnyRecord], list[AnyRecord], list[AnyRecord]]:
    """Shuffle into train, validation and test; all records of a prompt share a split, and equal ones count once.

    ``held_out`` is the share of the prompts in validation, and again in test; each has at least one. Where there are
    fewer than three prompts, every record stands for itself. Messages name ``source``.

    Raises:
        DataError: If there are fewer than three distinct records.
    """
    distinct = list(dict.fromkeys(records))
    if len(distinct) < 3:
        raise DataError(f"{source} has {len(distinct)} distinct records; at least 3 are needed (training, validation, "
                        "test), and some hundreds for a useful model")
    order = [distinct[i] for i in named_rng("split", seed).permutation(len(distinct))]
    by_prompt: dict[str | AnyRecord, list[AnyRecord]] = {}
    for record in order:
        by_prompt.setdefault(record.asked or record, []).append(record)
    groups = list(by_prompt.values()) if len(by_prompt) > 2 else [[record] for record in order]
    n_held = min(max(1, round(held_out * len(groups))), (len(groups) - 1) // 2)
    validation, test, train = (list(itertools.chain(*part)) for part in (
        groups[:n_held], groups[n_held:2 * n_held], groups[2 * n_held:]))
    return train, validation, test


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
