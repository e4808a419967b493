"""Every export by name, and the one call that writes several."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qra_bo.export import hints, trainers
from qra_bo.export.card import model_card
from qra_bo.export.run import FinishedRun
from qra_bo.utils.errors import ConfigError, nearest_first
from qra_bo.utils.files import check_run_folder, writing

TEXTS: dict[str, tuple[str, Callable[[FinishedRun], str]]] = {
    "card": ("adapter/README.md", model_card),
    "axolotl": ("export/axolotl.yaml", trainers.axolotl),
    "trl": ("export/train_trl.py", trainers.trl),
    "llamafactory": ("export/llamafactory.yaml", trainers.llamafactory),
    "gptqmodel": ("export/gptqmodel_dynamic.json", hints.gptqmodel),
    "torchao": ("export/torchao_fqn.json", hints.torchao),
    "vllm": ("export/serve_vllm.txt", hints.vllm),
}
UNIFORM_RANK = "uniform_rank"
SMALL = (*TEXTS, UNIFORM_RANK)
"""What is exported unless targets are named: nothing that copies the base model."""
TARGETS = (*SMALL, "packed", "merged", "bitsandbytes")


def export_all(run_folder: Path, targets: Sequence[str] = SMALL, merged_base: str = "dequantised",
               trust_remote_code: bool = False) -> list[Path]:
    """Write exports of a finished run into its folder; returns the files.

    Args:
        run_folder: Folder of a run that ended with an adapter.
        targets: Names from ``TARGETS``.
        merged_base: Into which base ``merged`` merges the adapter: ``dequantised`` or ``original``.
        trust_remote_code: Whether code that comes with the base model may run, where a target needs that model.

    Raises:
        ConfigError: If a target is unknown; all of them at once, the nearest known names first.
        OutputError: If the run is not finished, or a file of it is malformed.
    """
    unknown = [f"export target {t!r} is unknown; known: {', '.join(nearest_first(t, TARGETS))}"
               for t in targets if t not in TARGETS]
    if unknown:
        raise ConfigError(unknown)
    check_run_folder(run_folder)
    run = FinishedRun.read(run_folder, trust_remote_code)
    with writing(run_folder, f"export again: task=export out={run_folder}"):
        return [path for target in dict.fromkeys(targets) for path in _export(run, target, merged_base)]


def _export(run: FinishedRun, target: str, merged_base: str) -> list[Path]:
    if target not in SMALL:
        from qra_bo.export import models  # imports torch
        from qra_bo.finetune.models.quiet import without_bars

        with without_bars():
            if target == "merged":
                return models.write_merged(run, merged_base)
            return models.write_packed(run) if target == "packed" else models.write_bitsandbytes(run)
    if target == UNIFORM_RANK:
        from qra_bo.export.padding import pad_adapter  # imports torch

        return list(pad_adapter(run, run.folder / "export" / "adapter_uniform_rank"))
    name, render = TEXTS[target]
    path = run.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run), encoding="utf-8")
    return [path]
