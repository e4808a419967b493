"""What exports are made from: the folder of a finished run; which exports are of its adapter; texts from templates."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, StrictBool, StrictFloat, StringConstraints, ValidationError

from qra_bo.config.check import fields_of
from qra_bo.config.groups import AdapterConfig, TrainConfig
from qra_bo.finetune.manifest import Manifest, read_manifest
from qra_bo.finetune.training.learning_rate import RATE_RULES
from qra_bo.memory.budget import format_size
from qra_bo.memory.serving import server_rank
from qra_bo.report.text import allocation_rows
from qra_bo.space.decoder import expert_of
from qra_bo.study.results import TRAINING, check_best
from qra_bo.utils.errors import OutputError, UserError
from qra_bo.utils.fields import Count, Natural, NonNegative, model_of, refusals
from qra_bo.utils.files import check_run_folder, read_object, write_json
from qra_bo.utils.formatting import number, override_value, signed

GGUF_FILES = ("base", "adapter", "merged-f16")
"""Files of the target ``gguf`` unless others are named."""
MADE_FROM = "export/made_from.json"
"""The adapter that each export with weights, and ``checks.json``, was made with. A run that is extended may deliver
another adapter, while its folder keeps exports of the former one. An interrupted export is not in the file."""
Line = Annotated[str, StringConstraints(pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\z")]
"""A text without line breaks and control characters: it is rendered into a line."""
_Loss = StrictFloat | None
_Format = model_of(backend=Line, bits=Count)
_Baseline = model_of(name=Line, loss=_Loss, predicted_bytes=Natural, feasible=StrictBool)
BEST: type[BaseModel] = model_of(
    model=Line, granularity=Line, oracle=Line, metric=Line, searched=StrictBool, winner_kind=Line,
    units=list[Line], bits=list[Count], ranks=list[Natural], formats=list[_Format],  # type: ignore[valid-type]
    alpha_over_rank=NonNegative, learning_rate=NonNegative, lr_rule=fields_of(AdapterConfig)["lr_rule"],
    loss=_Loss, loss_se=_Loss, search_loss=_Loss, baselines=list[_Baseline],  # type: ignore[valid-type]
    delivered=model_of(loss=StrictFloat, loss_se=_Loss, kept_step=Natural) | None,
    memory=model_of(scope=Line, budget_bytes=Natural, predicted_bytes=Natural, measured_bytes=Natural | None),
    versus_best_uniform=model_of(mean=StrictFloat, low=StrictFloat, high=StrictFloat, train_seeds=Natural,
                                 steps=Natural) | None,
    objective=model_of(steps=Natural, predicted_beyond=_Loss), provenance=dict[str, Any],
    prediction=model_of(label=Line, mean=_Loss, low=_Loss, high=_Loss, steps=Natural) | None,
    training=model_of(trial_steps=Count, steps=Natural, **{key: fields_of(TrainConfig)[key] for key in TRAINING}))
"""Types of the fields of ``best.json`` that exports state: the file may be of unknown origin, and its values are
rendered into programs and pages."""


def problems_of(best: Mapping[str, Any]) -> Sequence[str]:
    """Return a text for every field of ``best.json`` that is missing, or of another type."""
    try:
        BEST.model_validate(dict(best))
    except ValidationError as error:
        return refusals(error)[:5]
    lengths = {len(best[key]) for key in ("units", "bits", "ranks", "formats")}
    return [] if len(lengths) == 1 and 0 not in lengths else ["units, bits, ranks and formats must be of one length"]


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run, the contents of its three files, and the options of exports.

    ``trust_remote_code`` lets code run that comes with the model; ``gguf`` are the files that this target writes.
    """

    folder: Path
    best: Mapping[str, Any]
    adapter_config: Mapping[str, Any]
    manifest: Manifest
    trust_remote_code: bool = False
    gguf: tuple[str, ...] = GGUF_FILES

    @classmethod
    def read(cls, folder: Path, trust_remote_code: bool = False, gguf: Sequence[str] = GGUF_FILES) -> "FinishedRun":
        """Read the three files.

        Raises:
            OutputError: If the folder holds links, or a file is missing or malformed; all problems at once.
        """
        check_run_folder(folder)
        found: list[Any] = []
        problems = []
        for read, path in ((read_object, folder / "best.json"), (read_object, folder / "adapter/adapter_config.json"),
                           (read_manifest, folder)):
            try:
                found.append(read(path))
            except OutputError as error:
                problems.append(str(error))
        problems = problems or [f"best.json: {problem}" for problem in problems_of(found[0])]
        if problems:
            raise OutputError(f"{folder} can't be exported, which needs a finished run with its adapter: "
                              f"{'; '.join(problems)}")
        best, config, manifest = found
        check_best(folder, best)
        return cls(folder, best, config, manifest, trust_remote_code, tuple(gguf))

    @property
    def base(self) -> str:
        """Name or path of the base model, as transformers takes it."""
        return str(self.adapter_config.get("base_model_name_or_path") or self.best["model"])

    @property
    def text_part(self) -> bool:
        """Whether the base is the text decoder of a checkpoint with other parts, which other programs load whole."""
        return self.manifest.model.get("text_part") is True

    @property
    def adapts_experts(self) -> bool:
        """Whether experts of a mixture have adapters, which PEFT alone can't place."""
        return any(record.rank and expert_of(name) is not None for name, record in self.manifest.modules.items())

    @property
    def plain(self) -> bool:
        """Whether the base has 16 bits throughout, as any program loads it."""
        return min(self.best["bits"]) == 16 and not self.manifest.tables

    @property
    def adapter(self) -> Path:
        return self.folder.resolve() / "adapter"

    @property
    def current_exports(self) -> set[str]:
        """Names of what was written to its end with the adapter that the run has now: targets, ``checks.json``."""
        return {name for name, adapter in self._made_from().items() if adapter == self.manifest.adapter_sha256}

    @contextmanager
    def recorded(self, target: str) -> Iterator[bool]:
        """Take a target off the record, and put it there after the block, which is told whether it was current. Raises
        ``OSError`` if that can't be written."""
        path, made_from = self.folder / MADE_FROM, self._made_from()
        path.parent.mkdir(parents=True, exist_ok=True)
        current = made_from.pop(target, None) == self.manifest.adapter_sha256
        write_json(path, made_from)
        whole = {**made_from, target: self.manifest.adapter_sha256}
        try:
            yield current
        except UserError:  # refused, so that nothing was written over
            write_json(path, whole if current else made_from)
            raise
        write_json(path, whole)

    def _made_from(self) -> dict[str, Any]:
        try:
            return read_object(self.folder / MADE_FROM)
        except OutputError:  # no export yet; of a damaged file nothing is known
            return {}


def export_command(run: FinishedRun, targets: Sequence[str]) -> str:
    """Return the command that writes these exports of a run with its options, for a shell in any folder."""
    options = [f"export.targets=[{','.join(targets)}]"]
    if "gguf" in targets and run.gguf != GGUF_FILES:
        options.append(f"export.gguf=[{','.join(run.gguf)}]")
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


def render(file: str, run: FinishedRun, **more: Any) -> str:
    """Fill in ``templates/FILE.jinja`` for a run, with ``more`` values; names reach other syntaxes through quoting
    filters alone, and every value reaches a program through ``repr``."""
    environment = Environment(loader=PackageLoader("qra_bo.export"), undefined=StrictUndefined, trim_blocks=True,
                              keep_trailing_newline=True, autoescape=False,
                              finalize=repr if file.endswith(".py") else None)
    environment.filters |= {"size": format_size, "number": number, "signed": signed, "json": _quoted,
                            "rows": allocation_rows, "quote": shlex.quote, "server_rank": server_rank,
                            "inline": lambda text: _quoted(str(text))[1:-1]}
    return environment.get_template(f"{file}.jinja").render(run=run, best=run.best, **more)


def _quoted(value: Any) -> str:
    """JSON that is YAML and Python too: both take an escaped pair of surrogates for two characters."""
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}",
                  json.dumps(value, ensure_ascii=False))
