"""The text of a run in the driver: checked before a model is downloaded or loaded, shown, counted; read once."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.load import load_data, read_data
from qra_bo.finetune.data.options import HubData, PlaysData, TinyData, UserData
from qra_bo.finetune.data.packing import pack
from qra_bo.finetune.data.plays import PACKAGE, VERSION, play_records
from qra_bo.finetune.data.records import Record, split_records
from qra_bo.report.example import print_data
from qra_bo.report.opening import print_passage
from qra_bo.study import JOURNAL_NAME
from qra_bo.utils.process import tolerant

CHARACTERS_PER_TOKEN = 3.2
"""Of the embedded text under SmolLM2's tokenizer: 3.98 million characters, 1.24 million tokens."""
SAMPLE = 5000
"""Training records that a plan tokenises; those of a larger file are a fair sample."""
WHOLE = 0.99
"""Share of the records that a length is stated for."""
Records = list[Record | Conversation]


@dataclass(frozen=True, slots=True)
class TextSize:
    """Size of a run's text before anything is trained.

    Args:
        source: Name of the text.
        records: Records of all splits; equal ones count once.
        repeated: Records that equal an earlier one, and are not among them.
        training_records: Those of the training split.
        training_tokens: Its tokens, without padding.
        sequences: Sequences of ``train.length`` tokens that it is packed into.
        cut_share: Share of its answer tokens beyond ``train.length``; ``None`` where no tokenizer counted them.
        whole_length: Tokens that ``WHOLE`` of the training records have at most, roughly; ``None`` but for a file of
            the user's.
        too_much_is_cut: Whether that is more than ``data.max_cut``, so that a run refuses the text.
        counted: Whether all of it was tokenised; else the tokens are an estimate.
        basis: What the number of tokens stands on, in words.
    """

    source: str
    records: int
    repeated: int
    training_records: int
    training_tokens: int
    sequences: float
    cut_share: float | None
    whole_length: int | None
    too_much_is_cut: bool
    counted: bool
    basis: str


class RunText:
    """The text of a run, read from its file or the hub at most once.

    Args:
        config: Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._read: tuple[Records, Counter[str]] | None = None

    def check(self) -> None:
        """Read the user's data, without a tokenizer; the data sets that come with qra_bo are passed over.

        Raises:
            DataError: If it is missing or malformed.
        """
        if isinstance(self._config.data, UserData) and self._read is None:
            self._read = read_data(self._config.data)

    def show(self, folders: Iterable[Path] = ()) -> float | None:
        """Tokenise the user's data with the model's tokenizer alone, before weights are loaded, and show an example.

        Of the embedded plays a passage is shown as it is: nothing in them depends on the tokenizer. Runs that have
        begun in ``folders``, and runs whose workers are on other machines, are passed over. The records are let go.

        Returns:
            Sequences of the training split, estimated where the text is not the user's; ``None`` where passed over.

        Raises:
            ModelError: If the tokenizer can't be read.
            DataError: If a conversation can't be rendered, or too much of the answers would be cut off.
        """
        config, data_cfg, read = self._config, self._config.data, self._read
        self._read = None
        begun = any((folder / JOURNAL_NAME).exists() for folder in folders)
        if begun or config.executor.elsewhere or not config.oracle.trains:
            return None
        if isinstance(data_cfg, PlaysData):
            train = play_records()[0]
            if config.display != "none":
                print_passage(_console(config), f"{len(train)} plays of {PACKAGE} {VERSION} for training",
                              train[0].target)
            return _estimate(config, train) / config.train.length
        if isinstance(data_cfg, TinyData):
            records = split_records(read_data(data_cfg)[0], data_cfg.held_out, 0, data_cfg.name)[0]
            return _estimate(config, records) / config.train.length
        from qra_bo.finetune.models.load import load_tokenizer  # loads transformers, which a simulation does without
        data = load_data(data_cfg, load_tokenizer(config.model), config.train.length, isolate=config.train.isolated,
                         read=read)
        if config.display != "none":
            print_data(_console(config), data)
        return float(len(data.train))


def text_size(config: RunConfig) -> TextSize | None:
    """Return the size of a run's text; ``None`` for a data set of the hub, which a run would download.

    The user's file is tokenised where the model's tokenizer is on this machine, a sample of it where it is large;
    otherwise its tokens are estimated from its characters.

    Raises:
        DataError: If the text is missing, malformed or too small.
        ModelError: If a conversation can't be rendered.
    """
    cfg, length = config.data, config.train.length
    splits: tuple[Sequence[Record | Conversation], ...]
    if isinstance(cfg, HubData):
        return None
    if isinstance(cfg, PlaysData):
        source, splits = f"the plays of {PACKAGE} {VERSION}", play_records()
        read = sum(map(len, splits))
    else:
        source = str(getattr(cfg, "path", None) or cfg.name)
        found = read_data(cfg)[0]
        read, splits = len(found), split_records(found, cfg.held_out, 0, source)
    train, records = splits[0], sum(map(len, splits))
    if isinstance(cfg, UserData):
        from qra_bo.finetune.models.load import tokenizer_at_hand  # loads transformers, which other plans do without
        tokenizer = tokenizer_at_hand(config.model)
        if tokenizer is not None:
            sample = train[:SAMPLE]  # they are shuffled
            blocks, times = pack(tokenizer, sample, length, 0, config.train.isolated), len(train) / len(sample)
            counted = len(sample) == len(train)
            basis = "counted by the model's tokenizer" if counted else \
                f"estimated from {len(sample):,} of them that the model's tokenizer counted"
            cut = blocks.facts.cut_share
            whole = _whole_length(train, blocks.facts.used_tokens / _characters(sample))
            return TextSize(source, records, read - records, len(train), round(times * blocks.facts.used_tokens),
                            times * len(blocks), cut, whole, cut > cfg.max_cut, counted, basis)
    tokens = _estimate(config, train)
    basis = "estimated at a token a byte" if config.model["source"] == "random" else \
        f"estimated at {CHARACTERS_PER_TOKEN} characters a token, as the embedded text has"
    if isinstance(cfg, UserData):
        basis += "; this machine lacks the model's tokenizer"
    return TextSize(source, records, read - records, len(train), round(tokens), tokens / length, None,
                    _whole_length(train, tokens / _characters(train)) if isinstance(cfg, UserData) else None, False,
                    False, basis)


def _estimate(config: RunConfig, train: Sequence[Record | Conversation]) -> float:
    """Return the rough tokens of records from their characters; of a model of bytes every one is a token."""
    return _characters(train) / (1.0 if config.model["source"] == "random" else CHARACTERS_PER_TOKEN)


def _characters(records: Sequence[Record | Conversation]) -> int:
    return sum(r.characters for r in records)


def _whole_length(records: Sequence[Record | Conversation], tokens_a_character: float) -> int:
    """Return the tokens that ``WHOLE`` of the records have at most, from their characters."""
    return math.ceil(tokens_a_character * float(np.quantile([r.characters for r in records], WHOLE)))


def _console(config: RunConfig) -> Console:
    return Console(file=tolerant(sys.stderr), force_terminal=False if config.display == "plain" else None)
