"""All export targets, the one call that writes several, and the one that loads them again (``export.check``)."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qra_bo.export import compressed_tensors, exl3, gguf, merged, mlx, vllm
from qra_bo.export.comparison import Loader, Reference, Row
from qra_bo.export.foreign import read_adapter
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun, export_command, render
from qra_bo.finetune.manifest import PROBE, probe_difference, read_probe
from qra_bo.finetune.models.load import without_bars
from qra_bo.memory.serving import experts_problems
from qra_bo.space.decoder import expert_of
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import writing


@dataclass(frozen=True, slots=True)
class Target:
    """One export target.

    Args:
        name: As in ``export.targets``.
        path: File or folder that ``write`` makes in the run's folder.
        write: Writes it and returns the files. Raises ``ConfigError`` where the run has something that has no form
            there, with the formats to search instead; ``OutputError`` where a file of the run is missing, damaged or of
            another run; ``ModelError`` where the base model is not at hand or another.
        small: Whether it is written unless targets are named: it copies no weights of the base.
        loader: Program that loads it again; ``None`` for texts.
        start: Return the commands that serve it, from any folder, by the server; none where its files serve nothing.
        refuse_base: Raises ``ConfigError`` for a base model of transformers and its tokenizer that have no form there;
            ``None`` where all have.
    """

    name: str
    path: str
    write: Callable[[FinishedRun], list[Path]]
    small: bool = False
    loader: Loader | None = None
    start: Callable[[FinishedRun], dict[str, str]] | None = None
    refuse_base: Callable[[Any, Any], None] | None = None


def text_target(name: str, path: str) -> Target:
    """A target of one text file, made from ``templates/FILE.jinja`` (FILE is the name in ``path``)."""
    def write(run: FinishedRun) -> list[Path]:
        file = run.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(file.name, run), encoding="utf-8")
        return [file]

    return Target(name, path, write, small=True)


TARGETS: dict[str, Target] = {target.name: target for target in (
    text_target("card", "adapter/README.md"),
    text_target("trl", "export/train_trl.py"),
    Target("vllm", vllm.FOLDER, vllm.write, small=True, loader=vllm.LOADER, start=vllm.start),
    Target("compressed_tensors", compressed_tensors.FOLDER, compressed_tensors.write, loader=compressed_tensors.LOADER,
           refuse_base=compressed_tensors.refuse_base),
    Target("gguf", gguf.FOLDER, gguf.write, loader=gguf.LOADER, start=gguf.start, refuse_base=gguf.refuse_base),
    Target("mlx", mlx.FOLDER, mlx.write, loader=mlx.LOADER, start=mlx.start, refuse_base=mlx.refuse_base),
    Target("exl3", exl3.FOLDER, exl3.write, loader=exl3.LOADER, refuse_base=exl3.refuse_base),
    Target("merged", merged.FOLDER, merged.write, loader=merged.LOADER))}
"""By name. A new target is one module (or template) in this package, one line here, and its name in
``memory.serving.EXPORT_TARGETS``."""
SMALL = tuple(name for name, target in TARGETS.items() if target.small)
"""Written unless targets are named: nothing that copies the base model."""
_STALE = "failed: it is unfinished, or of an earlier result of this run; export it again"


def export_all(run: FinishedRun, targets: Sequence[str] = SMALL) -> list[Path]:
    """Write exports of a finished run into its folder; returns the files.

    Args:
        run: The run, with the options of its exports.
        targets: Names from ``TARGETS``.

    Raises:
        ConfigError: If the run has something that a target has no form for.
        OutputError: If a file of the run is malformed, or its folder can't be written.
    """
    if any(expert_of(name) is not None for name in run.manifest.modules) and (problems := experts_problems(targets)):
        raise ConfigError(problems)
    with writing(run.folder, f"export again: {export_command(run, targets)}"), without_bars():
        return [path for name in dict.fromkeys(targets) for path in _written(TARGETS[name], run)]


def _written(target: Target, run: FinishedRun) -> list[Path]:
    if run.manifest.in_folder and target.name not in (*SMALL, "merged"):
        raise ConfigError(f"export.targets=[{target.name}] can't hold the codes of {run.base}, which programs load "
                          "as it is, with the adapter beside it; leave it out, or export merged")
    if target.small:  # it speaks of the adapter, which the others read
        read_adapter(run.adapter, run.manifest)
    if target.loader is None:  # it holds nothing that an adapter determines
        return target.write(run)
    with run.recorded(target.name) as current:
        if not current and (folder := run.folder / target.path).is_dir():  # nothing of an earlier adapter is kept
            shutil.rmtree(folder)
            folder.mkdir()
        return target.write(run)


def stale_exports(run: FinishedRun) -> list[str]:
    """Return the targets of which a run's folder holds an export that is unfinished, or of an earlier adapter."""
    current = run.current_exports
    return [target.name for target in TARGETS.values() if target.loader is not None and target.name not in current
            and (run.folder / target.path).exists()]


def check_exports(run: FinishedRun) -> list[Row]:
    """Load a run by ``qra_bo.load``, its adapter by PEFT, and every export in its folder by the program it is for, and
    compare them with the run's own model.

    An export that can't be loaded has a row with the reason. Errors: those of ``load``.
    """
    model, _ = load(run.folder, trust_remote_code=run.trust_remote_code)
    base, probe, where = run.manifest.packed, run.folder / PROBE, run.manifest.packed_on
    packed = "the base as it is" if base is None else f"from {base}"
    then = "" if where == "cpu" else f", which were computed on {where} and here on a CPU"
    rows = [Row("manifest and adapter", "qra_bo.load", f"{packed}, every checksum held; against the logits kept at the "
                f"end of the run{then}", probe_difference(model, probe, torch.device("cpu")))]
    reference = Reference(run, read_probe(probe)[0][0], model)
    rows.append(reference.row("adapter", reference.fused, "the same sums in another order",
                              loaded_by="peft on the mixed base"))
    stale = stale_exports(run)
    for target in TARGETS.values():
        if target.loader is not None and (run.folder / target.path).exists():
            rows += [Row(target.name, target.loader.name, _STALE)] if target.name in stale else \
                target.loader.rows(target.name, run, reference)
    return rows
