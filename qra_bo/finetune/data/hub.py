"""Records of data sets on the hub, through the ``datasets`` package."""

from importlib.util import find_spec
from typing import Any

from qra_bo.finetune.data.jsonl import to_record
from qra_bo.finetune.data.options import DataConfig, HubData
from qra_bo.finetune.data.records import Record
from qra_bo.utils.errors import DataError, MissingExtraError


def check_package(cfg: DataConfig) -> None:
    """Refuse data from the hub without the package that fetches it, before anything is loaded.

    Raises:
        MissingExtraError: If ``datasets`` is not installed.
    """
    if cfg.kind != "hub":
        return
    found = find_spec("datasets")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise MissingExtraError("datasets", "data", f"data={cfg.name}")


def hub_records(cfg: HubData) -> list[Record]:
    """Records of the training split of a hub data set, in its order.

    Raises:
        MissingExtraError: If ``datasets`` is not installed.
        DataError: If the hub or the data set can't be reached, or a record is malformed.
    """
    check_package(cfg)
    import datasets

    name, options = cfg.path, {"revision": cfg.revision, "split": "train"}
    try:
        if cfg.subset is not None and cfg.subset.endswith((".jsonl", ".json")):
            revision = f"@{cfg.revision}" if cfg.revision else ""
            rows: Any = datasets.load_dataset("json", data_files=f"hf://datasets/{name}{revision}/{cfg.subset}",
                                              split="train")
        else:
            rows = datasets.load_dataset(name, cfg.subset, **options)
    except Exception as error:  # the package raises whatever its transport raises: all mean that the data is not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the data set {name!r} can't be fetched from the hub ({type(error).__name__}: {reason}); with "
                        "no network use the embedded data=plays, or a file with data=jsonl data.path=FILE") from error
    n = len(rows) if cfg.max_records is None else min(cfg.max_records, len(rows))
    return [to_record(rows[i], f"{name}, record {i + 1}") for i in range(n)]
