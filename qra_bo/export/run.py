"""What an export is made from: the folder of a finished run; and texts about it, from templates."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qra_bo.finetune.training.learning_rate import RATE_RULES
from qra_bo.report.next_steps import server_rank
from qra_bo.report.text import allocation_rows, size
from qra_bo.study.results import build_best, load_study
from qra_bo.utils.errors import JournalError, OutputError
from qra_bo.utils.files import check_run_folder, strict_json
from qra_bo.utils.formatting import number, override_value, signed

REQUIRED = {
    "best.json": ("model", "granularity", "units", "bits", "ranks", "formats", "memory", "oracle", "alpha_over_rank",
                  "loss", "loss_se", "metric", "baselines", "versus_best_uniform", "objective", "searched",
                  "provenance", "learning_rate", "lr_rule", "training"),
    "adapter/adapter_config.json": ("rank_pattern", "alpha_pattern", "r", "lora_alpha"),
    "quant_manifest.json": ("modules",)}
"""Files of a finished run and the fields that exports need."""
GGUF_FILES = ("base", "adapter", "merged-f16")
"""Files of the target ``gguf`` unless others are named."""
MERGED_BASE = "dequantised"
"""Base of the target ``merged`` unless the other is named."""

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw": "paged_adamw_32bit",
              "paged_adamw_8bit": "paged_adamw_8bit"}
"""Names that transformers has for the kinds of ``train.optimizer``."""


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run, the contents of its three files, and the options of exports.

    ``trust_remote_code`` lets code run that comes with the base model; ``merged_base`` is the base that the target
    ``merged`` merges into; ``gguf`` are the files that the target ``gguf`` writes. ``renew`` says that what the folder
    holds of the target being written is unfinished, or of an earlier adapter: nothing of it is kept.
    """

    folder: Path
    best: Mapping[str, Any]
    adapter_config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    trust_remote_code: bool = False
    merged_base: str = MERGED_BASE
    gguf: tuple[str, ...] = GGUF_FILES
    renew: bool = False

    @classmethod
    def read(cls, folder: Path, trust_remote_code: bool = False, merged_base: str = MERGED_BASE,
             gguf: Sequence[str] = GGUF_FILES) -> "FinishedRun":
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
        modules = None if problems else contents[-1]["modules"]
        if not problems and not (isinstance(modules, dict) and all(
                isinstance(entry, dict) and {"name", "bits", "rank"} <= entry.keys() for entry in modules.values())):
            problems.append("quant_manifest.json: every module must have a format's name, bits and a rank")
        if problems:
            raise OutputError(f"{folder} can't be exported, which needs a finished run with its adapter: "
                              f"{'; '.join(problems)}")
        best, config, manifest = contents
        _check_best(folder, best)
        return cls(folder, best, config, manifest, trust_remote_code, merged_base, tuple(gguf))

    @property
    def base(self) -> str:
        """Name or path of the base model, as transformers takes it."""
        return str(self.adapter_config.get("base_model_name_or_path") or self.best["model"])

    @property
    def model(self) -> Mapping[str, Any]:
        """The node of ``conf/model`` in the manifest; empty where there is none."""
        node = self.manifest.get("model")
        return node if isinstance(node, Mapping) else {}

    @property
    def text_part(self) -> bool:
        """Whether the base is the text decoder of a checkpoint with other parts, which other programs load whole."""
        return self.model.get("text_part") is True

    @property
    def base_for_trainers(self) -> str:
        """The base as other trainers take it; to be set by hand where they can't load what the run was trained on."""
        return "SET-ME" if self.text_part or self.model.get("gguf_file") else self.base

    @property
    def uniform_bits(self) -> int:
        """Bits of the base nearest to the run's among those of trainers that quantise every layer alike: 4, 8 or 16."""
        least = int(min(self.best["bits"]))
        return 16 if least == 16 else 8 if least >= 8 else 4

    @property
    def plain(self) -> bool:
        """Whether the base has 16 bits throughout, as any program loads it."""
        return self.uniform_bits == 16 and not self.manifest.get("embeddings")

    @property
    def weights(self) -> int:
        """Number of weights of the quantised linears."""
        return sum(math.prod(entry.get("shape", (0,))) for entry in self.manifest["modules"].values())

    @property
    def rates(self) -> dict[int, float]:
        """Peak learning rate of every rank of its adapter, in the order of the ranks."""
        ranks = sorted({int(entry["rank"]) for entry in self.manifest["modules"].values()} - {0})
        return {rank: rate_of(self.best, rank) for rank in ranks}

    @property
    def mean_rate(self) -> float:
        """Peak learning rate for a trainer that has one for all ranks: that of the mean rank of the adapted modules."""
        ranks = [int(entry["rank"]) for entry in self.manifest["modules"].values() if entry["rank"]]
        return rate_of(self.best, sum(ranks) / len(ranks))

    @property
    def adapter(self) -> Path:
        return self.folder.resolve() / "adapter"


def export_command(run: FinishedRun, targets: Sequence[str]) -> str:
    """Return the command that writes these exports of a run with its options, for a shell in any folder."""
    options = [f"export.targets=[{','.join(targets)}]"]
    if "gguf" in targets and run.gguf != GGUF_FILES:
        options.append(f"export.gguf=[{','.join(run.gguf)}]")
    if "merged" in targets and run.merged_base != MERGED_BASE:
        options.append(f"export.merged_base={run.merged_base}")
    if run.trust_remote_code:
        options.append("model.trust_remote_code=true")
    folder = override_value(str(run.folder.resolve()))
    return shlex.join(["python", "-m", "qra_bo", "task=export", f"out={folder}", *options])


def rate_of(best: Mapping[str, Any], rank: float) -> float:
    """Return the peak learning rate of a rank in the final fine-tune, by the contents of ``best.json``, which states
    that of rank 16 in a trial."""
    training = best["training"]
    ratio = training["steps"] / training["trial_steps"]
    return float(best["learning_rate"]) * RATE_RULES[best["lr_rule"]].factor(rank, ratio)


def _check_best(folder: Path, best: Mapping[str, Any]) -> None:
    """Compare the contents of ``best.json`` with the run's journal, where that is at hand and ended; raises
    ``OutputError`` where they differ. The checks are passed over: another release may word them otherwise."""
    try:
        known = json.loads(json.dumps(build_best(load_study(folder))))
    except JournalError:
        return
    if {**known, "checks": None} != {**best, "checks": None}:
        raise OutputError(f"{folder / 'best.json'} is not what the run's trials.jsonl says: it was changed; run the "
                          "search's command again, which writes it from the journal, or copy it again")


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


def render(file: str, run: FinishedRun, **more: Any) -> str:
    """Fill in ``templates/FILE.jinja`` for a run, with ``more`` values; names reach other syntaxes through quoting
    filters alone."""
    environment = Environment(loader=PackageLoader("qra_bo.export"), undefined=StrictUndefined, trim_blocks=True,
                              keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"size": size, "number": number, "signed": signed, "json": json.dumps, "shell": shlex.quote,
                            "optimizer_of_transformers": OPTIMIZERS.__getitem__, "rows": allocation_rows,
                            "server_rank": server_rank,
                            "inline": lambda text: json.dumps(str(text))[1:-1].replace("'", "\\'")}
    return environment.get_template(f"{file}.jinja").render(run=run, best=run.best, **more)
