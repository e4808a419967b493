"""``exl3/``: the mixed base with the run's own codes, as exllamav3 loads it; the adapter stays beside it, as PEFT's.

Tensors have the names of its ``LinearEXL3``: ``trellis``, ``suh``, ``svh``, and the codebook's number in ``mul1``. What
is not packed keeps its type; biases of packed linears are padded as their outputs are. Layout: ``modules/linear.py``
and ``conversion/quant_config.py`` of exllamav3.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.export.comparison import Loader, Reference, Row
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import LinearWeights, RunWeights, refuse_formats, save_model, weights_of
from qra_bo.finetune.models.files import bases_of
from qra_bo.finetune.models.load import cast_parameters, packed_folder_of
from qra_bo.finetune.models.packed_folder import PackedFolder
from qra_bo.finetune.quantization.folder_states import values
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, TILES
from qra_bo.memory.serving import CONSUMERS

FOLDER, FACTS = "exl3", "quantization_config.json"


def write(run: FinishedRun) -> list[Path]:
    """Write weights, both configurations, tokenizer with its chat template, and a card with the commands that load it.
    """
    refuse_formats("exl3", run.manifest.modules)
    weights, folder = weights_of(run), run.folder / FOLDER
    refuse_base(weights, weights.tokenizer)
    base = packed_folder_of(bases_of(run.manifest.model)[0]) if run.manifest.stored else None
    tensors, facts = tensors_of(weights, base), quantization_config(weights, base)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).write_text(json.dumps({**facts, "tensor_storage": _storage(tensors)}, indent=2) + "\n",
                                encoding="utf-8")
    config = {**json.loads(weights.config.to_json_string()), "quantization_config": facts}
    return save_model(folder, weights, config, tensors, "pt", render("exl3.md", run))


def refuse_base(model: Any, tokenizer: Any) -> None:
    """Refuse a base model of a family whose names of tensors were not compared with exllamav3's."""
    CONSUMERS["exllamav3"].check_family(model.config.model_type)


def quantization_config(weights: RunWeights, base: PackedFolder | None = None) -> dict[str, Any]:
    """Return the entry of ``config.json``: bits are the average of the linears', the rest is that of a stored ``base``,
    or the release that of the sources that were read."""
    sizes = [(linear.shape[0] * linear.shape[1], EXL3[linear.format.name].half_bits / 2
              if linear.format.backend == TILES else 16) for linear in weights.linears.values()]
    average = sum(numel * bits for numel, bits in sizes) / sum(numel for numel, _ in sizes)
    own = {"quant_method": "exl3", "version": "1.6.5", "head_bits": 16, "codebook": "mul1"}
    return {**(own if base is None else base.options), "bits": round(average, 2)}


def tensors_of(weights: RunWeights, base: PackedFolder | None = None) -> dict[str, Tensor]:
    """Return the file's tensors by name. Beside the linears' codes they are those of a stored ``base``."""
    packed = {f"{linear.name}.{leaf}": part for linear in weights.linears.values()
              for leaf, part in _parts(linear).items()}
    others = weights.others if base is None else {
        name: values(base, name) for name in base.tensors
        if name.rpartition(".")[0] not in weights.linears or name.endswith(".bias")}
    return {**packed, **others}


def _parts(linear: LinearWeights) -> dict[str, Tensor]:
    bias = linear.bias
    if linear.format.backend != TILES:
        return {"weight": linear.state["codes"]} | ({} if bias is None else {"bias": bias})
    state, book = linear.state, EXL3[linear.format.name].codebook
    found = {"trellis": state["codes"], "suh": state["suh"], "svh": state["svh"]}
    if book != "3inst":
        found[book] = torch.tensor(CODEBOOKS[book] - 2**32, dtype=torch.int32)
    if bias is not None:  # 32 bits have no form beside tiles
        half = bias.half() if bias.dtype == torch.float32 else bias
        found["bias"] = nn.functional.pad(half, (0, len(state["svh"]) - len(half)))
    return found


def _storage(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the headers of the file hold, by module."""
    modules: dict[str, Any] = {}
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        module = modules.setdefault(place, {"stored_tensors": {}})
        module["stored_tensors"][name] = {"shape": list(tensor.shape), "n_bytes": tensor.nbytes,
                                          "dtype": str(tensor.dtype)}
        if leaf == "trellis":
            whole, half = divmod(tensor.shape[2], 16)
            module |= {"quant_format": "exl3", "bits_per_weight": whole + half / 16 if half else whole}
        elif leaf in CODEBOOKS:
            module[f"{leaf}_multiplier"] = CODEBOOKS[leaf]
    return modules


def _views(run: FinishedRun, reference: Reference) -> list[Row]:
    model, _ = load_stored({"name": FOLDER, "source": "path", "path": str(run.folder / FOLDER), "gguf_file": None,
                            "revision": None, "trust_remote_code": False}, torch.float32)
    cast_parameters(model, torch.float32)
    return reference.rows("exl3", model)


LOADER = Loader("qra_bo's own reader of EXL3", _views)  # exllamav3's needs CUDA
