"""``compressed_tensors/``: the mixed base with the run's own codes, as transformers and vLLM load it.

The format is ``pack-quantized`` of compressed-tensors: codes of 1 to 8 bits in a bit stream of 32-bit words along each
row, a scale a group, and one scheme for the modules of each storage format. The adapter stays beside it, as PEFT's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qra_bo.export.comparison import Loader, Reference, Row, plain_model
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import RunWeights, refuse_formats, save_model, weights_of
from qra_bo.finetune.models.activations import decoder_layers
from qra_bo.utils.errors import ConfigError

FOLDER = "compressed_tensors"
WORD = 32
"""Bits of a word, and codes that fill whole words at any bit-width."""
TILE = 1 << 20
"""Codes packed at a time: their bits take a byte each meanwhile."""


def write(run: FinishedRun) -> list[Path]:
    """Write weights, configuration, tokenizer with its chat template, and a card with the commands that load it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING  # slow to import
    refuse_formats("compressed_tensors", run.manifest.modules)
    weights = weights_of(run)
    if (kind := MODEL_FOR_CAUSAL_LM_MAPPING.get(type(weights.config), None)) is not None:
        with torch.device("meta"):
            refuse_base(kind(weights.config), weights.tokenizer)
    config = {**json.loads(weights.config.to_json_string()), "quantization_config": quantization_config(weights)}
    return save_model(run.folder / FOLDER, weights, config, tensors_of(weights), "pt",
                      render("compressed_tensors.md", run))


def refuse_base(model: Any, tokenizer: Any) -> None:
    """Refuse a base model of transformers whose linears compute by themselves, as Falcon's: they would look for the
    dense weight. Raises ``ConfigError``; the ``tokenizer`` is copied as it is."""
    kinds = {type(module).__name__ for module in decoder_layers(model).modules()
             if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward}
    if kinds:
        raise ConfigError(f"transformers can't load this {model.config.model_type} model in compressed-tensors: its "
                          f"linear layers are {', '.join(sorted(kinds))}, which multiply by a dense weight. Export "
                          "merged, a copy in 16 bits, or choose another base model")


def quantization_config(weights: RunWeights) -> dict[str, Any]:
    """Return the entry of ``config.json``: one scheme for the modules, by name, of each storage format."""
    groups: dict[str, dict[str, Any]] = {}
    dense = [name for name, linear in weights.linears.items() if linear.format.bits == 16]
    for name, fmt in ((name, linear.format) for name, linear in weights.linears.items() if linear.format.bits < 16):
        groups.setdefault(fmt.name, {"targets": [], "format": "pack-quantized", "weights": {
            "num_bits": fmt.bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": fmt.block,
            "dynamic": False}})["targets"].append(name)
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "ignore": [*dense, "lm_head"], "config_groups": groups}


def tensors_of(weights: RunWeights) -> dict[str, Tensor]:
    """Return the tensors of the file by name."""
    found = dict(weights.others)
    for name, linear in weights.linears.items():
        if linear.bias is not None:
            found[f"{name}.bias"] = linear.bias
        if linear.format.bits == 16:
            found[f"{name}.weight"] = linear.state["codes"]
            continue
        found |= {f"{name}.weight_packed": in_words(linear.affine()[0], linear.format.bits),
                  f"{name}.weight_scale": linear.state["scale"], f"{name}.weight_shape": torch.tensor(linear.shape)}
    return found


def in_words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (``out x in``, uint8) into 32-bit words, ``out x ceil(in bits / 32)``: bit ``i`` of a row's stream is
    bit ``i % 32`` of word ``i // 32``, and a code's lowest bit comes first."""
    columns = codes.shape[1]
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD))
    octets, step = padded.numpy()[..., None], max(1, TILE // padded.shape[1])
    tiles = [np.packbits(np.unpackbits(octets[first:first + step], axis=-1, count=bits, bitorder="little"),
                         bitorder="little") for first in range(0, len(octets), step)]
    words = torch.from_numpy(np.concatenate(tiles)).view(torch.int32).view(len(codes), -1)
    return words[:, :-(-columns * bits // WORD)].contiguous()


def _views(run: FinishedRun, reference: Reference) -> list[Row]:
    return reference.rows("compressed_tensors", plain_model(run.folder / FOLDER, run.trust_remote_code))


LOADER = Loader("transformers and peft", _views, ("compressed_tensors",), "compressed-tensors")
