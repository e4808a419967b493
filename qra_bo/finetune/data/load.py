"""From the options of a data set to token blocks of its three splits."""

from collections.abc import Callable, Mapping
from typing import Any

from qra_bo.finetune.data.hub import hub_records
from qra_bo.finetune.data.jsonl import read_records
from qra_bo.finetune.data.options import DataConfig
from qra_bo.finetune.data.plays import PACKAGE, VERSION, play_records
from qra_bo.finetune.data.records import DataSplits, Record, assemble, split_records
from qra_bo.finetune.data.tiny import tiny_records

READERS: Mapping[str, Callable[[Any, int], list[Record]]] = {
    "jsonl": lambda cfg, seed: read_records(cfg.path, cfg.max_records),
    "hub": lambda cfg, seed: hub_records(cfg),
    "tiny": lambda cfg, seed: tiny_records(cfg.max_records or 512, seed)}
"""Readers of records by ``kind``, from the options and a seed; the plays have splits of their own."""


def load_data(data_cfg: DataConfig, tokenizer: Any, length: int, seed: int = 0) -> DataSplits:
    """Read, split, tokenise and pack.

    Args:
        data_cfg: Options of the data set.
        tokenizer: Of transformers.
        length: Tokens of a sequence.
        seed: Seed of the split of records and of the order of sequences. It is not the seed of a search: runs that are
            compared share it, and so their data.

    Raises:
        DataError: If the data is missing, malformed or too small.
        MissingExtraError: If a package is needed that is not installed.
    """
    if data_cfg.kind == "plays":
        splits, source = play_records(), f"plays of {PACKAGE} {VERSION}"
    else:
        source = str(getattr(data_cfg, "path", None) or data_cfg.name)
        splits = split_records(READERS[data_cfg.kind](data_cfg, seed), data_cfg.held_out, seed, source)
    return assemble(tokenizer, splits, length, data_cfg.calibration, seed, source)


def data_notes(data_cfg: DataConfig, data: DataSplits) -> list[str]:
    """Return the notes on the user's data for the report: the records that are cut."""
    if not data.train.cut or data_cfg.kind not in ("jsonl", "hub"):
        return []
    return [f"{data.train.cut:,} training records of {data.source} are longer than train.length="
            f"{data.train.input_ids.shape[1]} tokens and are cut, first at the front of the prompt, then at the end of "
            "the target; a larger train.length keeps them whole, and takes more memory"]
