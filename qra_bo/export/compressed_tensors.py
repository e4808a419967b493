"""``compressed_tensors/``: the mixed base with the run's own codes, as transformers and vLLM load it.

The format is ``pack-quantized`` of compressed-tensors: codes of 1 to 8 bits in a bit stream of 32-bit words along each
row, a scale a group, and one scheme for the modules of each storage format. The adapter stays beside it, as PEFT's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.export.comparison import Loader, Reference, View, plain_model, with_adapter
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import LinearWeights, RunWeights, save_generation, weights_of
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.finetune.models.activations import decoder_layers
from qra_bo.memory.serving import CONSUMERS
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ConfigError

FOLDER = "compressed_tensors"
WEIGHTS = "model.safetensors"
WORD = 32
"""Bits of a word, and codes that fill whole words at any bit-width."""
TILE = 1 << 20
"""Codes packed at a time: their bits take a byte each meanwhile."""


def write(run: FinishedRun) -> list[Path]:
    """Write weights, configuration, tokenizer with its chat template, and a card with the commands that load it.

    Raises:
        ConfigError: If a module is in a format that has no form there, or is of a kind that is not loaded.
        OutputError: If a file of the run is missing, damaged or of another run.
        ModelError: If the base model is not at hand or another.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING  # slow to import
    refuse_formats({name: record.format for name, record in run.manifest.modules.items()})
    weights, folder = weights_of(run), run.folder / FOLDER
    if (kind := MODEL_FOR_CAUSAL_LM_MAPPING.get(type(weights.config), None)) is not None:
        with torch.device("meta"):
            refuse_base(kind(weights.config), weights.tokenizer)
    folder.mkdir(exist_ok=True)
    weights.tokenizer.save_pretrained(str(folder))
    weights.config.save_pretrained(str(folder))
    save_generation(weights.generation_config, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(weights)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tensors(folder / WEIGHTS, tensors_of(weights), {"format": "pt"})
    (folder / "README.md").write_text(render("compressed_tensors.md", run), encoding="utf-8")
    return sorted(p for p in folder.iterdir() if p.is_file())


def refuse_base(model: Any, tokenizer: Any) -> None:
    """Refuse a base model of transformers whose linears compute by themselves, as Falcon's: they would look for the
    dense weight. Raises ``ConfigError``; the ``tokenizer`` is copied as it is."""
    kinds = {type(module).__name__ for module in decoder_layers(model).modules()
             if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward}
    if kinds:
        raise ConfigError(f"transformers can't load this {model.config.model_type} model in compressed-tensors: its "
                          f"linear layers are {', '.join(sorted(kinds))}, which multiply by a dense weight. Export "
                          "merged, a copy in 16 bits, or choose another base model")


def refuse_formats(formats: dict[str, StorageFormat]) -> None:
    """Refuse formats by module that compressed-tensors can't hold or read.

    Raises:
        ConfigError: With all of them, the reason, and the formats to search instead.
    """
    others = {fmt.name: fmt for fmt in formats.values() if not CONSUMERS["transformers"].loads(fmt)}
    if not others:
        return
    reasons = [f"{', '.join(sorted(others))} {'has' if len(others) == 1 else 'have'} no form there"]
    zeros = sorted(name for name, fmt in others.items() if fmt.backend == "integer")
    if zeros:
        reasons.append(f"compressed-tensors 0.18 to 0.20 can't read integer zeros ({', '.join(zeros)})")
    raise ConfigError(f"the export compressed_tensors holds symmetric integers (sym formats) and 16 bits; in this run "
                      f"{', and '.join(reasons)}. Search again with serve=transformers, whose formats are these, or "
                      "export merged, a copy in 16 bits")


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
    """Return the tensors of the file by name; none shares storage with another."""
    found = dict(weights.others)
    for name, linear in weights.linears.items():
        if linear.bias is not None:
            found[f"{name}.bias"] = linear.bias
        found |= {f"{name}.{key}": tensor for key, tensor in _packed(linear).items()}
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _packed(linear: LinearWeights) -> dict[str, Tensor]:
    if linear.format.bits == 16:
        return {"weight": linear.state["codes"]}
    return {"weight_packed": in_words(linear.affine().codes, linear.format.bits), "weight_scale": linear.state["scale"],
            "weight_shape": torch.tensor(linear.shape)}


def in_words(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (``out x in``, uint8) into 32-bit words, ``out x ceil(in bits / 32)``: bit ``i`` of a row's stream is
    bit ``i % 32`` of word ``i // 32``, and a code's lowest bit comes first."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % WORD))
    words = torch.empty(rows, padded.shape[1] * bits // WORD, dtype=torch.int32)
    step = max(1, TILE // padded.shape[1])
    for first in range(0, rows, step):
        stream = (padded[first:first + step].unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8)) & 1
        octets = stream.view(len(stream), -1, 8) << torch.arange(8, dtype=torch.uint8)
        words[first:first + step] = octets.sum(-1, dtype=torch.uint8).view(torch.int32)
    return words[:, :-(-columns * bits // WORD)].contiguous()


def _views(run: FinishedRun, reference: Reference) -> Iterator[View]:
    model = plain_model(run.folder / FOLDER, run.trust_remote_code)
    yield View("compressed_tensors, base", reference.logits(model), adapted=False)
    yield View("compressed_tensors, with the adapter", reference.logits(with_adapter(model, run.adapter)))


LOADER = Loader("transformers and peft", _views, ("compressed_tensors",), "compressed-tensors")
