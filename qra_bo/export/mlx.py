"""``mlx/``: the mixed base with its own codes and the adapter, as mlx-lm loads them on Apple silicon.

MLX computes ``code * scale + bias`` with codes of the formats ``in_mlx`` by group, at a width and group of each
module's own. The bias is ``-zero * scale``. Scales and biases are stored in fp16, and so is what is not quantised: in
bf16, MLX's products round 8-bit codes. That is exact for the symmetric formats and for integer zeros of 2 and 3 bits;
other zeros are rounded, by less than 2^-11 of themselves.

mlx-lm takes one rank for all modules: the adapter is padded with zeros, and its scale is folded into B.
"""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_bo.export.comparison import Loader, Reference, Row
from qra_bo.export.compressed_tensors import in_words
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import LinearWeights, RunWeights, padded, refuse_formats, save_model, weights_of
from qra_bo.finetune.checked_tensors import save_tensors
from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError

FOLDER, ADAPTER = "mlx", "adapter"
MIXED = torch.float16
_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def write(run: FinishedRun) -> list[Path]:
    """Write base and adapter, each with its configuration, the tokenizer, and the commands that serve them."""
    refuse_formats("mlx", run.manifest.modules)
    weights = weights_of(run)
    rounded = sorted({linear.format.name for linear in weights.linears.values()
                      if not CONSUMERS["mlx"].loads(linear.format)})
    adapted = any(linear.lora is not None for linear in weights.linears.values())
    return write_model(weights, run.folder / FOLDER, render("mlx.md", run, adapted=adapted, rounded=rounded))


def write_model(weights: RunWeights, folder: Path, card: str = "") -> list[Path]:
    """Write what mlx-lm loads; return the files. Raises ``ConfigError`` if it has no such model."""
    linears = [*weights.linears.values(), *weights.tables.values()]
    kinds = {linear.name: {"group_size": linear.format.block, "bits": linear.format.bits}
             for linear in linears if linear.format.backend != "none"}
    usual = Counter((kind["group_size"], kind["bits"]) for kind in kinds.values()).most_common(1)
    (group, bits), _ = usual[0] if usual else ((64, 4), 0)
    config = mlx_config(weights.config, {"group_size": group, "bits": bits, **kinds})
    tensors = {name: _half(name, tensor) for name, tensor in weights.others.items()
               if name.removesuffix(".weight") not in weights.tables}
    for linear in linears:
        tensors |= linear_tensors(linear)
    _write_adapter(weights, folder / ADAPTER)
    return save_model(folder, weights, config, tensors, "mlx", card)


def refuse_base(model: Any, tokenizer: Any) -> None:
    """Refuse a base model that mlx-lm computes otherwise."""
    mlx_config(model.config, {})


def linear_tensors(linear: LinearWeights) -> dict[str, Tensor]:
    """Return the tensors of one linear by mlx-lm's names."""
    name, found = linear.name, {} if linear.bias is None else {f"{linear.name}.bias": _half(linear.name, linear.bias)}
    if linear.format.backend == "none":
        return {f"{name}.weight": _half(name, linear.dense(torch.float32)), **found}
    codes, scale, zero = linear.affine()
    return {f"{name}.weight": in_words(codes, linear.format.bits).view(torch.uint32), **found,
            f"{name}.scales": _half(name, scale), f"{name}.biases": _half(name, -zero * scale)}


def _half(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in fp16; raises ``ConfigError`` if a value is beyond its range."""
    half = tensor.to(MIXED)
    if not torch.isfinite(half).all():
        raise ConfigError(f"{name} has values beyond the range of fp16, in which MLX files keep what is not quantised: "
                          "export.targets=[merged] writes 16-bit weights in the type of the run")
    return half


def _write_adapter(weights: RunWeights, folder: Path) -> None:
    """Write the adapter, if there is one, in the words of mlx-lm."""
    pairs = {linear.name: linear.lora for linear in weights.linears.values() if linear.lora is not None}
    if not pairs:
        return
    rank = max(len(pair.down) for pair in pairs.values())
    tensors = {}
    for name, pair in pairs.items():
        down, up = padded(pair.down, pair.scale * pair.up, rank)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = down.T.contiguous(), up.T.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapters.safetensors", tensors, {"format": "mlx"})
    config = {"fine_tune_type": "lora", "num_layers": int(weights.config.num_hidden_layers),
              "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": list(pairs)}}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def mlx_config(config: Any, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``config.json``.

    Args:
        config: Configuration of the base model, by transformers.
        quantization: Entry ``"quantization"``: group size and bits of each quantised module by its path.

    Raises:
        ConfigError: If mlx-lm computes such a decoder in another way than transformers, or that is not known.
    """
    data = dict(config.to_dict())
    family = str(data.get("model_type"))
    CONSUMERS["mlx"].check_family(family)
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        data.pop(key, None)
    data |= _rope(family, data)
    data |= _windows(family, data)
    return {**data, "quantization": dict(quantization)}


def _rope(family: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings, at the top level: most decoders of mlx-lm ignore ``rope_parameters``."""
    nested = data.get("rope_parameters") or {}
    whole = nested.get("full_attention", nested)
    kind = whole.get("rope_type", "default")
    if kind not in _ROPE_TYPES or (kind == "longrope") != (family == "phi3" and kind != "default"):
        raise ConfigError(f"the target mlx covers RoPE of the types {', '.join(_ROPE_TYPES)} (longrope for phi3 "
                          f"alone); this model has {kind!r}: export.targets=[merged] writes 16-bit weights")
    found = {"rope_theta": whole["rope_theta"], "rope_scaling": None}
    if family == "gemma3_text":
        found["rope_local_base_freq"] = nested["sliding_attention"]["rope_theta"]
    if "partial_rotary_factor" in whole:
        found["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if kind != "default":
        scaling = {**whole, "type": kind}
        if kind == "longrope":
            # mlx-lm applies one set of factors at every length: those of texts within the original context, as trained.
            scaling["long_factor"] = whole["short_factor"]
            found["original_max_position_embeddings"] = whole.get("original_max_position_embeddings",
                                                                  data.get("original_max_position_embeddings"))
        found["rope_scaling"] = scaling
    return found


def _windows(family: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Sliding windows: mlx-lm's gemma3 has them by a period of layers, its other decoders have none in all layers."""
    kinds: Sequence[str] = data.get("layer_types") or ()
    window = data.get("sliding_window")
    if family == "gemma3_text":
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        if not full or full != list(range(full[0], len(kinds), full[0] + 1)):
            raise ConfigError("the target mlx covers Gemma 3 whose layers attend to the whole text at regular "
                              f"intervals; these are the layers {full}: export.targets=[merged] writes 16-bit weights")
        return {"sliding_window_pattern": full[0] + 1}
    sliding = not kinds or "sliding_attention" in kinds
    if window is None or window >= data["max_position_embeddings"] or not sliding:
        return {}
    raise ConfigError(f"mlx-lm has no sliding window, here of {window} tokens, for models of {family!r}: "
                      "export.targets=[merged] writes 16-bit weights for programs that have")


def mlx_logits(folder: Path, ids: Tensor, *, adapted: bool, fp32: bool) -> Tensor:
    """Return the logits (``n x v``, fp32) of a folder in mlx-lm for ``n`` tokens.

    ``adapted`` says whether the adapter is put on, ``fp32`` whether products are computed in fp32 instead of the
    files' fp16. Raises ``ImportError`` where mlx-lm is not installed.
    """
    import mlx.core as mx  # not every platform has it
    from mlx_lm.utils import load_adapters, load_model
    model, _ = load_model(folder)
    if adapted:
        load_adapters(model, str(folder / ADAPTER))
    if fp32:
        model.set_dtype(mx.float32)
    model.eval()
    return torch.from_numpy(np.array(model(mx.array(ids[None].numpy()))[0].astype(mx.float32)))


def _views(run: FinishedRun, reference: Reference) -> Iterator[Row]:
    folder, ids = run.folder / FOLDER, reference.ids
    adapted = (folder / ADAPTER).is_dir()
    yield reference.row("mlx, computed in fp32", mlx_logits(folder, ids, adapted=adapted, fp32=True))
    yield reference.row("mlx, as served", mlx_logits(folder, ids, adapted=adapted, fp32=False), "products in fp16")
    yield reference.row("mlx, without the adapter", mlx_logits(folder, ids, adapted=False, fp32=True), adapted=False)


def start(run: FinishedRun) -> dict[str, str]:
    """Return the command of mlx-lm's server."""
    folder = run.folder.resolve() / FOLDER
    adapter = ["--adapter-path", str(folder / ADAPTER)] if (folder / ADAPTER).is_dir() else []
    return {"mlx": shlex.join(["mlx_lm.server", "--model", str(folder), *adapter, "--port", "8080"])}


LOADER = Loader("mlx-lm", _views, ("mlx", "mlx_lm"), "mlx-lm" if sys.platform == "darwin" else "mlx[cpu] mlx-lm")
