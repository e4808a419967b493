"""``packed.safetensors``: the packed weights beside the manifest, so that loading does not quantise again."""

from dataclasses import replace
from pathlib import Path

from qra_bo.export.load import check_states, load
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.manifest import MANIFEST, PACKED, flatten, table_states
from qra_bo.finetune.quantization.base import packed
from qra_bo.utils.files import write_json


def write(run: FinishedRun) -> list[Path]:
    """Write the packed weights, unless they are there, and name their file in the manifest.

    Raises:
        OutputError: If quantising again gives other weights than the run's.
        ModelError: If the base model is not at hand or another.
    """
    folder, manifest = run.folder, run.manifest
    if manifest.packed is None:
        model, _ = load(folder, manifest.packed_on, adapter=False, trust_remote_code=run.trust_remote_code)
        states = {name: packed(model.get_submodule(name)).packed_state() for name in manifest.modules}
        states |= table_states(model)
        check_states(manifest, states, folder)
        save_tensors(folder / PACKED, {key: tensor.cpu() for key, tensor in flatten(states).items()})
        write_json(folder / MANIFEST, replace(manifest, packed=PACKED).to_json())
    return [folder / PACKED, folder / MANIFEST]
