"""Token blocks of a data set's three splits, from its options; records of the hub, and synthetic ones for tests."""

from collections.abc import Callable, Mapping
from typing import Any

from qra_bo.finetune.data.jsonl import read_records, to_record
from qra_bo.finetune.data.options import DataConfig, HubData
from qra_bo.finetune.data.plays import PACKAGE, VERSION, play_records
from qra_bo.finetune.data.records import DataSplits, Record, assemble, named_rng, split_records
from qra_bo.utils.errors import DataError


def hub_records(cfg: HubData) -> list[Record]:
    """Records of the training split of a hub data set, in its order.

    Raises:
        DataError: If the hub or the data set can't be reached, or a record is malformed.
    """
    import datasets  # a second that other data does without
    name = cfg.path
    try:
        if cfg.subset is not None and cfg.subset.endswith((".jsonl", ".json")):
            revision = f"@{cfg.revision}" if cfg.revision else ""
            rows: Any = datasets.load_dataset("json", data_files=f"hf://datasets/{name}{revision}/{cfg.subset}",
                                              split="train")
        else:
            rows = datasets.load_dataset(name, cfg.subset, revision=cfg.revision, split="train")
    except Exception as error:  # the package raises whatever its transport raises: all mean that the data is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the data set {name!r} can't be fetched from the hub ({type(error).__name__}: {reason}); with "
                        "no network use the embedded data=plays, or a file with data=jsonl data.path=FILE") from error
    n = len(rows) if cfg.max_records is None else min(cfg.max_records, len(rows))
    return [to_record(rows[i], f"{name}, record {i + 1}") for i in range(n)]


READERS: Mapping[str, Callable[[Any, int], list[Record]]] = {
    "jsonl": lambda cfg, seed: read_records(cfg.path, cfg.max_records), "hub": lambda cfg, seed: hub_records(cfg),
    "tiny": lambda cfg, seed: tiny_records(cfg.max_records or 512, seed)}
"""Readers of records by ``kind``, from the options and a seed; the plays have splits of their own."""


def load_data(data_cfg: DataConfig, tokenizer: Any, length: int, seed: int = 0) -> DataSplits:
    """Read, split, tokenise and pack into sequences of ``length`` tokens.

    ``seed`` splits the records and orders the sequences; all searches share it, and so their data.

    Raises:
        DataError: If the data is missing, malformed or too small.
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


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

def byte_tokenizer() -> Any:
    """Return a tokenizer of transformers: UTF-8 bytes as ids 0 to 255, then pad (256) and end (257)."""
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
