"""A finished run as exporters see it: ``best.json``, ``adapter/adapter_config.json``, ``quant_manifest.json``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_bo.oracle.protocol import FINETUNE
from qra_bo.report.notebook import allocation_rows
from qra_bo.report.story import server_rank
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder, strict_json

REQUIRED = {
    "best.json": ("model", "granularity", "units", "bits", "ranks", "formats", "memory", "oracle", "alpha_over_rank",
                  "loss", "loss_se", "metric", "baselines", "versus_best_uniform", "provenance"),
    "adapter/adapter_config.json": ("rank_pattern", "alpha_pattern", "r", "lora_alpha"),
    "quant_manifest.json": ("modules",)}
"""Files of a finished run and the fields that exports need."""


@dataclass(frozen=True)
class FinishedRun:
    """The files of a finished run.

    Args:
        folder: The run's folder.
        best: Content of ``best.json``.
        adapter_config: Content of ``adapter/adapter_config.json``.
        manifest: Content of ``quant_manifest.json``.
        trust_remote_code: Whether code that comes with the base model may run, where the run needs it.
        merged_base: Base that the target ``merged`` merges into.
    """

    folder: Path
    best: Mapping[str, Any]
    adapter_config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    trust_remote_code: bool = False
    merged_base: str = "dequantised"

    @classmethod
    def read(cls, folder: Path, trust_remote_code: bool = False, merged_base: str = "dequantised") -> "FinishedRun":
        """Read the three files.

        Raises:
            OutputError: If the folder holds links, or a file is missing or malformed; all problems at once.
        """
        check_run_folder(folder)
        contents, problems = [], []
        for name, fields in REQUIRED.items():
            try:
                contents.append(read_object(folder / name))
                problems += [f"{name}: {key} is missing" for key in fields if key not in contents[-1]]
            except OutputError as error:
                problems.append(str(error))
        if problems:
            raise OutputError(f"{folder} can't be exported, which needs a finished run with its adapter: "
                              f"{'; '.join(problems)}")
        best, config, manifest = contents
        return cls(folder, best, config, manifest, trust_remote_code, merged_base)

    @property
    def base(self) -> str:
        """Name or path of the base model, as transformers takes it."""
        return str(self.adapter_config.get("base_model_name_or_path") or self.best["model"])

    @property
    def adapter(self) -> Path:
        """Folder of the adapter, absolute."""
        return self.folder.resolve() / "adapter"

    @property
    def is_proxy(self) -> bool:
        """Whether no model was trained for these numbers."""
        return bool(self.best["oracle"] != FINETUNE)

    @cached_property
    def module_ranks(self) -> dict[str, int]:
        """Module path to rank, from PEFT's patterns with their escapes undone."""
        return {re.sub(r"\\(.)", r"\1", key): int(rank) for key, rank in self.adapter_config["rank_pattern"].items()}

    @cached_property
    def module_bits(self) -> dict[str, int]:
        """Module path to code bits, for every linear layer of the decoder."""
        return {name: int(entry["bits"]) for name, entry in self.manifest["modules"].items()}

    @property
    def allocation_rows(self) -> list[tuple[str, object, str, object]]:
        """(units, bits, format, rank); neighbouring equal units share a row."""
        return allocation_rows(self.best)

    @property
    def server_rank(self) -> int:
        """The least ``--max-lora-rank`` of vLLM that takes the adapter."""
        return server_rank(tuple(self.best["ranks"]))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of unknown origin.

    Raises:
        OutputError: If it can't be read, or is something else.
    """
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} can't be read ({error.strerror})") from error
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise OutputError(f"{path} must hold an object")
    return data
