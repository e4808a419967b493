"""A finished run as exporters see it: ``best.json``, ``adapter/adapter_config.json``, ``quant_manifest.json``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_bo.oracle.protocol import FINETUNE
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import strict_json


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind.

    Args:
        folder: The run's folder.
        best: Content of ``best.json``.
        adapter_config: Content of ``adapter/adapter_config.json``.
        manifest: Content of ``quant_manifest.json``.
        trust_remote_code: Whether code that comes with the base model may run, where the run needs it.
    """

    folder: Path
    best: Mapping[str, Any]
    adapter_config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    trust_remote_code: bool = False

    @classmethod
    def read(cls, folder: Path, trust_remote_code: bool = False) -> "FinishedRun":
        """Read the three files.

        Raises:
            OutputError: If one of them is missing or malformed; all problems at once.
        """
        problems: list[str] = []
        contents = [_read(folder / name, problems)
                    for name in ("best.json", "adapter/adapter_config.json", "quant_manifest.json")]
        if not problems:
            best, config, manifest = contents
            lacking = [f"best.json: {k}" for k in ("model", "units", "bits", "ranks", "formats", "memory", "oracle",
                                                   "alpha_over_rank", "loss", "provenance") if k not in best]
            lacking += [f"adapter_config.json: {k}" for k in ("rank_pattern", "alpha_pattern", "r", "lora_alpha")
                        if k not in config]
            lacking += ["quant_manifest.json: modules"] if not isinstance(manifest.get("modules"), dict) else []
            problems += [f"fields are missing: {', '.join(lacking)}"] if lacking else []
        if problems:
            raise OutputError(f"{folder} can't be exported, which needs a finished run with its adapter: "
                              f"{'; '.join(problems)}")
        best, config, manifest = contents
        return cls(folder, best, config, manifest, trust_remote_code)

    @property
    def base(self) -> str:
        """Name or path of the base model, as transformers takes it."""
        return str(self.adapter_config.get("base_model_name_or_path") or self.best["model"])

    @property
    def is_proxy(self) -> bool:
        return bool(self.best["oracle"] != FINETUNE)

    @cached_property
    def module_ranks(self) -> dict[str, int]:
        """Module path to rank, from PEFT's patterns with their escapes undone."""
        return {re.sub(r"\\(.)", r"\1", key): int(rank) for key, rank in self.adapter_config["rank_pattern"].items()}

    @cached_property
    def module_bits(self) -> dict[str, int]:
        """Module path to code bits, for every quantised or unquantised linear layer of the decoder."""
        return {name: int(entry["bits"]) for name, entry in self.manifest["modules"].items()}

    @property
    def max_rank(self) -> int:
        return max(int(r) for r in self.best["ranks"])


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path} can't be read ({error.strerror})")
        return {}
    except ValueError as error:
        problems.append(f"{path} is not JSON ({error})")
        return {}
    if not isinstance(data, dict):
        problems.append(f"{path} must hold an object")
        return {}
    return data
