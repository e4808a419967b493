"""``config.json`` of an MLX export: that of transformers, with RoPE and attention in the words of mlx-lm."""

from collections.abc import Mapping, Sequence
from typing import Any

from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError

FAMILIES = CONSUMERS["mlx"].families
_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def mlx_config(config: Any, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``config.json``.

    Args:
        config: Configuration of the base model, by transformers.
        quantization: Entry ``"quantization"``: group size and bits of each quantised module by its path.

    Raises:
        ConfigError: If mlx-lm computes such a decoder in another way than transformers, or that is not known.
    """
    data = dict(config.to_dict())
    family = data.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"the target mlx covers models of {', '.join(FAMILIES)}; this one is of {family!r}: "
                          "export.targets=[merged] writes 16-bit weights for programs that know it")
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
                              f"intervals; here these are the layers {full}: export.targets=[merged] writes 16-bit "
                              "weights")
        return {"sliding_window_pattern": full[0] + 1}
    sliding = not kinds or "sliding_attention" in kinds
    if window is None or window >= data["max_position_embeddings"] or not sliding:
        return {}
    raise ConfigError(f"mlx-lm has no sliding window, here of {window} tokens, for models of {family!r}: "
                      "export.targets=[merged] writes 16-bit weights for programs that have")
