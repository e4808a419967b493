"""``packed.safetensors``: the packed weights beside the manifest, so that loading does not quantise again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import MANIFEST, PACKED, Manifest, flatten, read_manifest, tensors_digest
from qra_bo.finetune.quantization.base import State, packed
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import write_json


def write(run: FinishedRun) -> list[Path]:
    """Write the packed weights, unless they are there, and name their file in the manifest.

    Raises:
        OutputError: If quantising again gives other weights than the run's.
        ModelError: If the base model is not at hand or another.
    """
    folder, manifest = run.folder, read_manifest(run.folder)
    if manifest.packed is None:
        model, _ = load(folder, manifest.packed_on, adapter=False, trust_remote_code=run.trust_remote_code)
        layers = {name: packed(model.get_submodule(name)) for name in manifest.modules}
        states = {name: layer.packed_state() for name, layer in layers.items()}
        check_states(manifest, states, folder)
        save_file({key: tensor.cpu() for key, tensor in flatten(states).items()}, folder / PACKED)
        write_json(folder / MANIFEST, replace(manifest, packed=PACKED).to_json())
    return [folder / PACKED, folder / MANIFEST]


def check_states(manifest: Manifest, states: Mapping[str, State], folder: Path) -> None:
    """Compare packed tensors with the checksums of the manifest.

    Raises:
        OutputError: With the first linear that differs or is missing.
    """
    for name, record in manifest.modules.items():
        if tensors_digest(states.get(name, {})) != record.sha256:
            raise OutputError(f"the packed weights of {name} do not have the checksum of the manifest in {folder}: the "
                              "file of packed weights is damaged or belongs to another run")
