"""The text of a run in the driver: checked before a model is downloaded or loaded, shown, counted; read once."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qra_bo.config import RunConfig
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.load import load_data, read_data, render, split_data
from qra_bo.finetune.data.options import HubData, UserData
from qra_bo.finetune.data.packing import assemble
from qra_bo.finetune.data.records import BlockFacts, Record
from qra_bo.report.tables import print_data, progress_console
from qra_bo.study.provenance import changes
from qra_bo.study.state import Study

CHARACTERS_PER_TOKEN = 3.2
"""Of the embedded text under SmolLM2's tokenizer: 3.98 million characters, 1.24 million tokens."""
SAMPLE = 5000
"""Training records that a plan tokenises; those of a larger file are a fair sample."""


@dataclass(frozen=True, slots=True)
class TextSize:
    """Size of a run's text before anything is trained: its name, records of all splits, those ``left_out`` by reason,
    those of the training split, its tokens without padding, and its sequences of ``train.length``.

    ``facts``: of the records that a tokenizer counted, ``None`` without one; ``basis`` says what the tokens stands on.
    """

    source: str
    records: int
    left_out: Mapping[str, int]
    training_records: int
    training_tokens: int
    sequences: float
    facts: BlockFacts | None
    basis: str


class RunText:
    """The text of a run, read from its file or the hub at most once.

    Args:
        config: Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._read: tuple[list[Record | Conversation], Counter[str]] | None = None

    def check(self) -> None:
        """Read the user's data, without a tokenizer; the data sets that come with qra_bo are passed over.

        Raises:
            DataError: If it is missing or malformed.
        """
        if isinstance(self._config.data, UserData) and self._read is None:
            self._read = read_data(self._config.data)

    def show(self, begun: Study | None = None) -> float | None:
        """Tokenise the user's data with the model's tokenizer alone, before weights are loaded, and show an example.

        A run that has ``begun``, and one whose workers are on other machines, are passed over; of one that has ended
        the text must be the same. The records are let go.

        Returns:
            Sequences of the training split, estimated where the text is not the user's; ``None`` where passed over.

        Raises:
            ModelError: If the tokenizer can't be read.
            DataError: If a conversation can't be rendered, or too much of the answers would be cut off.
            JournalError: If a run that has ended was trained on another text.
        """
        config, read = self._config, self._read
        self._read = None
        ended = begun is not None and begun.end is not None and isinstance(config.data, UserData)
        if (begun and not ended) or config.executor.elsewhere or not config.oracle.trains:
            return None
        if not isinstance(config.data, UserData):
            size = text_size(config)
            return None if size is None else size.sequences
        from qra_bo.finetune.models.load import load_tokenizer  # loads transformers, which a simulation does without
        data = load_data(config.data, load_tokenizer(config.model), config.train.length, isolate=config.train.isolated,
                         read=read)
        if begun is not None:  # what has ended asks no worker for its text
            changes(begun.provenance, {**begun.provenance, "data_sha256": data.sha256})
            return None
        if config.display != "none":
            print_data(progress_console(config.display == "plain"), data)
        return float(len(data.train))


def text_size(config: RunConfig) -> TextSize | None:
    """Return the size of a run's text; ``None`` for a data set of the hub, which a run would download.

    The user's file is tokenised where the model's tokenizer is on this machine, a sample of it where it is large;
    otherwise its tokens are estimated from its characters.

    Raises:
        DataError: If the text is missing, malformed or too small, or conversations can't be rendered.
    """
    cfg, length = config.data, config.train.length
    if isinstance(cfg, HubData):
        return None
    source, splits, left_out = split_data(cfg)
    train, records = splits[0], sum(map(len, splits))
    # To a model of bytes every one is a token.
    per_token, basis = (1.0, "estimated at a token a byte") if config.model["source"] == "random" else \
        (CHARACTERS_PER_TOKEN, f"estimated at {CHARACTERS_PER_TOKEN} characters a token, as the embedded text has")
    whole, facts = [record.characters / per_token for record in train], None
    tokens = sum(min(n, length) if isinstance(r, Conversation) else n for n, r in zip(whole, train, strict=True))
    sequences = float(math.ceil(tokens / length))
    if isinstance(cfg, UserData):
        from qra_bo.finetune.models.load import tokenizer_at_hand  # loads transformers, which other plans do without
        tokenizer = tokenizer_at_hand(config.model)
        if tokenizer is None:
            basis += "; this machine lacks the model's tokenizer"
            if (lost := 1 - tokens / sum(whole)) > 0.01:
                basis += f"; train.length={length} cuts about {lost:.0%} of the conversations, see data.max_cut"
        else:
            samples = [render(split[:SAMPLE], cfg.render, tokenizer) for split in splits]  # they are shuffled
            blocks = assemble(tokenizer, samples, length, 1, 0, source, config.train.isolated).train
            facts, times = blocks.facts, len(train) / len(samples[0])
            sequences, tokens = times * len(blocks), times * facts.used_tokens
            basis = "counted by the model's tokenizer" if times == 1 else \
                f"estimated from {len(samples[0]):,} of them that the model's tokenizer counted"
    return TextSize(source, records, left_out, len(train), round(tokens), sequences, facts, basis)
