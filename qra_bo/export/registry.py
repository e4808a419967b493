"""All export targets, and the one call that writes several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qra_bo.export import bitsandbytes, compressed_tensors, gguf, merged, mlx, packed, uniform_rank, vllm
from qra_bo.export.record import current_exports, recorded
from qra_bo.export.run import GGUF_FILES, FinishedRun, export_command
from qra_bo.export.target import Target, text_target
from qra_bo.finetune.models.load import without_bars
from qra_bo.utils.errors import ConfigError, nearest_first
from qra_bo.utils.files import writing

TARGETS: dict[str, Target] = {target.name: target for target in (
    text_target("card", "adapter/README.md"),
    text_target("axolotl", "export/axolotl.yaml"),
    text_target("trl", "export/train_trl.py"),
    text_target("llamafactory", "export/llamafactory.yaml"),
    Target("vllm", vllm.FILE, vllm.write, small=True, start=vllm.start),
    Target("uniform_rank", uniform_rank.FOLDER, uniform_rank.write, small=True, loader=uniform_rank.LOADER),
    Target("packed", "packed.safetensors", packed.write),
    Target("compressed_tensors", compressed_tensors.FOLDER, compressed_tensors.write, loader=compressed_tensors.LOADER,
           refuse_base=compressed_tensors.refuse_base),
    Target("gguf", gguf.FOLDER, gguf.write, loader=gguf.LOADER, start=gguf.start, refuse_base=gguf.refuse_base),
    Target("mlx", mlx.FOLDER, mlx.write, loader=mlx.LOADER, start=mlx.start, refuse_base=mlx.refuse_base),
    Target("merged", merged.FOLDER, merged.write, loader=merged.LOADER),
    Target("bitsandbytes", bitsandbytes.FOLDER, bitsandbytes.write, loader=bitsandbytes.LOADER),
)}
"""By name. A new target is one module (or template) in this package, one line here, and its name in
``memory.serving.EXPORT_TARGETS``."""
SMALL = tuple(name for name, target in TARGETS.items() if target.small)
"""Written unless targets are named: nothing that copies the base model."""


def export_all(run_folder: Path, targets: Sequence[str] = SMALL, merged_base: str = merged.DEQUANTISED,
               trust_remote_code: bool = False, gguf_files: Sequence[str] = GGUF_FILES) -> list[Path]:
    """Write exports of a finished run into its folder; returns the files.

    Args:
        run_folder: Folder of a run that ended with an adapter.
        targets: Names from ``TARGETS``.
        merged_base: Base that ``merged`` merges the adapter into: ``dequantised`` or ``original``.
        trust_remote_code: Whether code that comes with the base model may run, where a target needs that model.
        gguf_files: Files of the target ``gguf``, of ``gguf.FILES``.

    Raises:
        ConfigError: If a target is unknown; all of them at once, the nearest known names first.
        OutputError: If the run is not finished, or a file of it is malformed.
    """
    if unknown := [f"export target {t!r} is unknown; known: {', '.join(nearest_first(t, TARGETS))}"
                   for t in targets if t not in TARGETS]:
        raise ConfigError(unknown)
    run = FinishedRun.read(run_folder, trust_remote_code, merged_base, gguf_files)
    with writing(run_folder, f"export again: {export_command(run, targets)}"), without_bars():
        return [path for name in dict.fromkeys(targets) for path in _written(TARGETS[name], run)]


def _written(target: Target, run: FinishedRun) -> list[Path]:
    if target.loader is None:  # it holds nothing that an adapter determines
        return target.write(run)
    with recorded(run, target.name) as current:
        return target.write(replace(run, renew=not current))


def stale_exports(run: FinishedRun) -> list[str]:
    """Return the targets of which a run's folder holds an export that is unfinished, or of an earlier adapter."""
    current = current_exports(run)
    return [target.name for target in TARGETS.values() if target.loader is not None and target.name not in current
            and (run.folder / target.path).exists()]


def base_problems(targets: Sequence[str], model: Any, tokenizer: Any) -> list[str]:
    """Return why a base model of transformers can't be exported to some of the targets."""
    problems: list[str] = []
    for name in targets:
        if (refuse := TARGETS[name].refuse_base) is not None:
            try:
                refuse(model, tokenizer)
            except ConfigError as error:
                problems += error.problems
    return problems
