"""``packed.safetensors``: the packed weights beside the manifest, so that loading does not quantise again."""

from dataclasses import replace
from pathlib import Path

from qra_bo.export.load import dense_base, packed_states
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.manifest import MANIFEST, PACKED, flatten
from qra_bo.utils.files import write_json


def write(run: FinishedRun) -> list[Path]:
    """Write the packed weights, unless they are there, and name their file in the manifest. Errors: those of
    ``dense_base`` and ``packed_states``."""
    folder, manifest = run.folder, run.manifest
    if manifest.packed is None:
        model, _ = dense_base(manifest, folder, run.trust_remote_code)
        states = flatten(dict(packed_states(model, manifest, folder)))
        save_tensors(folder / PACKED, {key: tensor.cpu() for key, tensor in states.items()})
        write_json(folder / MANIFEST, replace(manifest, packed=PACKED).to_json())
    return [folder / PACKED, folder / MANIFEST]
