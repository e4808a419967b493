"""Checks of the user's data before a model is downloaded or loaded, and the example that is shown."""

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.finetune.data.load import load_data, read_data
from qra_bo.finetune.data.options import DataConfig, PlaysData, UserData
from qra_bo.finetune.data.plays import PACKAGE, VERSION, play_records
from qra_bo.report.example import print_data
from qra_bo.report.opening import print_passage
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

    Of the embedded plays a passage is shown as it is: nothing in them depends on the tokenizer. Runs that have begun in
    ``folders``, and runs whose workers are on other machines, are passed over.

    Raises:
        ModelError: If the tokenizer can't be read.
        DataError: If a conversation can't be rendered, or too much of the answers would be cut off.
    """
    begun = any((folder / JOURNAL_NAME).exists() for folder in folders)
    if begun or config.executor.elsewhere or not config.oracle.trains:
        return
    if isinstance(config.data, PlaysData) and config.display != "none":
        train = play_records()[0]
        print_passage(_console(config), f"{len(train)} plays of {PACKAGE} {VERSION} for training", train[0].target)
    if not isinstance(config.data, UserData):
        return
    from qra_bo.finetune.models.load import load_tokenizer  # loads transformers, which a simulation does without
    data = load_data(config.data, load_tokenizer(config.model), config.train.length, isolate=config.train.isolated)
    if config.display != "none":
        print_data(_console(config), data)


def _console(config: RunConfig) -> Console:
    return Console(file=tolerant(sys.stderr), force_terminal=False if config.display == "plain" else None)
