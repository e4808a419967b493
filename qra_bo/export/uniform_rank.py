"""``export/adapter_uniform_rank``: the adapter padded with zeros to its largest rank, the same function."""

import json
from pathlib import Path

import torch

from qra_bo.export.comparison import Loader, Reference, View
from qra_bo.export.foreign import CONFIG, WEIGHTS, check_adapter, read_weights
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.manifest import read_manifest
from qra_bo.utils.errors import OutputError

FOLDER = "export/adapter_uniform_rank"


def write(run: FinishedRun) -> list[Path]:
    """Write the adapter with the largest rank everywhere; returns the files.

    With a constant alpha / r the scaling stays as it was, and B A does not change: the added rows of A (``r x in``) and
    columns of B (``out x r``) are zero. The tensors must have the ranks of the manifest: the largest decides about the
    size of the files.

    Raises:
        OutputError: If the adapter's weights are missing, they or its configuration differ from the manifest, or
            alpha / r differs between modules.
    """
    target, manifest = run.folder / FOLDER, read_manifest(run.folder)
    check_adapter(run.adapter, manifest)
    ranks = {name: record.rank for name, record in manifest.modules.items() if record.rank}
    scales = {manifest.modules[name].alpha / rank for name, rank in ranks.items()}
    if max(scales) - min(scales) > 1e-9 * max(scales):
        raise OutputError(f"alpha / r differs between modules ({sorted(scales)}); one rank can't express that")
    tensors = read_weights(run.adapter, manifest)
    for name, rank in ranks.items():
        added = max(ranks.values()) - rank
        for matrix, sides in (("A", (0, 0, 0, added)), ("B", (0, added))):
            key = f"base_model.model.{name}.lora_{matrix}.weight"
            tensors[key] = torch.nn.functional.pad(tensors[key], sides).contiguous()
    config = {**run.adapter_config, "rank_pattern": {}, "alpha_pattern": {}}  # r and lora_alpha: of the largest rank
    target.mkdir(parents=True, exist_ok=True)
    save_tensors(target / WEIGHTS, tensors, {"format": "pt"})
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [target / CONFIG, target / WEIGHTS]


def _views(run: FinishedRun, reference: Reference) -> list[View]:
    logits = reference.adapted(run.folder / FOLDER, one_rank=True)
    return [View("uniform_rank", logits, note="added rows and columns are zero")]


LOADER = Loader("peft on the mixed base", _views)
