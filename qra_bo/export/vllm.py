"""``export/vllm``: the commands that serve a run by vLLM, its own mix where vLLM reads the formats, and its adapter.

vLLM reads mixed bits from compressed-tensors, module by module, and fuses the projections of one input, which must be
of one format. Of LoRA it takes PEFT's adapters. Releases that ignore rank patterns take the rank and the scale of the
configuration for every module: an adapter that is padded with zeros to one rank is right in all of them.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from qra_bo.export import compressed_tensors, merged
from qra_bo.export.comparison import Loader, Reference, Row
from qra_bo.export.foreign import read_adapter
from qra_bo.export.run import FinishedRun, export_command, render
from qra_bo.export.weights import padded
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qra_bo.memory.file_formats import TILES
from qra_bo.memory.serving import CONSUMERS, server_rank
from qra_bo.space import StorageFormat
from qra_bo.space.decoder import expert_of, fused_of

FOLDER, COMMANDS = "export/vllm", "serve.txt"


def write(run: FinishedRun) -> list[Path]:
    """Write the commands and, where vLLM loads the run's own mix, the adapter with one rank; returns the files."""
    folder = run.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    formats = {name: record.format for name, record in run.manifest.modules.items()}
    merged_copy = shlex.join(["vllm", "serve", str(run.folder.resolve() / merged.FOLDER)])
    known = run.manifest.in_folder and all(fmt.backend != TILES for fmt in formats.values())
    reason = None if known else obstacle(formats)
    text = render(COMMANDS, run, obstacle=reason, widths=sorted({fmt.bits for fmt in formats.values()} - {16}),
                  export=export_command(run, ["merged"] if reason else _targets(run)),
                  serve=merged_copy if reason else _serve(run))
    (folder / COMMANDS).write_text(text, encoding="utf-8")
    return [folder / COMMANDS, *([] if reason else write_adapter(run, folder))]


def write_adapter(run: FinishedRun, folder: Path) -> list[Path]:
    """Write the run's adapter with its largest rank everywhere, the same function; returns the files.

    The tensors must have the ranks of the manifest: the largest decides about the size of the files.

    Raises:
        OutputError: If the adapter's weights are missing, or they or its configuration differ from the manifest.
    """
    tensors = read_adapter(run.adapter, run.manifest)
    ranks = {name: record.rank for name, record in run.manifest.modules.items() if record.rank}
    for name in ranks:
        down, up = (f"base_model.model.{name}.lora_{matrix}.weight" for matrix in "AB")
        tensors[down], tensors[up] = padded(tensors[down], tensors[up], max(ranks.values()))
    config = {**run.adapter_config, "rank_pattern": {}, "alpha_pattern": {}}  # r and lora_alpha: of the largest rank
    save_tensors(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS]


def obstacle(formats: Mapping[str, StorageFormat]) -> str | None:
    """Return why vLLM does not load a mix of formats by module; ``None`` where it does."""
    if any(expert_of(module) is not None for module in formats):
        return "there is no export of a mixture of experts in its own bits"
    others = sorted({fmt.name for fmt in formats.values() if not CONSUMERS["vllm"].loads(fmt)})
    if others:
        return f"vLLM has no {', '.join(others)}"
    together: dict[tuple[str, str], set[str]] = {}
    for module, fmt in formats.items():
        parent, _, leaf = module.rpartition(".")
        together.setdefault((parent, fused_of(leaf)), set()).add(fmt.name)
    unlike = sorted({fused for (_, fused), names in together.items() if len(names) > 1})
    return f"vLLM fuses projections that have different formats here ({', '.join(unlike)})" if unlike else None


def _targets(run: FinishedRun) -> list[str]:
    return ["vllm"] if run.manifest.in_folder else ["compressed_tensors", "vllm"]


def _serve(run: FinishedRun) -> str:
    folder = run.folder.resolve()
    base = run.base if run.manifest.in_folder else str(folder / compressed_tensors.FOLDER)
    return shlex.join(["vllm", "serve", base, "--enable-lora", "--max-lora-rank",
                       str(server_rank(run.best["ranks"])), "--lora-modules", f"qra_bo={folder / FOLDER}"])


def start(run: FinishedRun) -> dict[str, str]:
    """Return the command that serves the run's own mix; none where its files are not there."""
    base = run.manifest.in_folder or (run.folder / compressed_tensors.FOLDER).is_dir()
    adapter = (run.folder / FOLDER / ADAPTER_WEIGHTS).is_file()  # which is there unless there is an obstacle
    return {"vllm": _serve(run)} if base and adapter and {*_targets(run)} <= run.current_exports else {}


def _views(run: FinishedRun, reference: Reference) -> list[Row]:
    folder = run.folder / FOLDER
    return [reference.row("vllm, its adapter of one rank", reference.adapted(folder, one_rank=True),
                          "added rows and columns are zero")] if (folder / ADAPTER_WEIGHTS).is_file() else []


LOADER = Loader("peft on the mixed base", _views)
