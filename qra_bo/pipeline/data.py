"""Checks of the user's data before a model is downloaded or loaded, and the example that is shown."""

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.finetune.data.load import load_data, read_data
from qra_bo.finetune.data.options import DataConfig, UserData
from qra_bo.report.example import print_data
from qra_bo.study import JOURNAL_NAME
from qra_bo.utils.process import tolerant


def check_data(data: DataConfig) -> None:
    """Read the user's data, without a tokenizer; the data sets that come with qra_bo are passed over.

    Raises:
        DataError: If it is missing or malformed.
    """
    if isinstance(data, UserData):
        read_data(data)


def show_data(config: RunConfig, folders: Iterable[Path] = ()) -> None:
    """Tokenise the user's data with the model's tokenizer alone, before weights are loaded, and show an example.

    Runs that have begun in ``folders``, and runs whose workers are on other machines, are passed over.

    Raises:
        ModelError: If the tokenizer can't be read.
        DataError: If a conversation can't be rendered, or too much of the answers would be cut off.
    """
    begun = any((folder / JOURNAL_NAME).exists() for folder in folders)
    if begun or config.executor.elsewhere or not config.oracle.trains or not isinstance(config.data, UserData):
        return
    from qra_bo.finetune.models.load import load_tokenizer  # loads transformers, which a simulation does without
    data = load_data(config.data, load_tokenizer(config.model), config.train.length, isolate=config.train.isolated)
    if config.display != "none":
        console = Console(file=tolerant(sys.stderr), force_terminal=False if config.display == "plain" else None)
        print_data(console, data)
