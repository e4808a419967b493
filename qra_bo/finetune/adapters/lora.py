"""LoRA adapters by PEFT with one rank for every module: attached, checked, and detached again."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Parameter

from qra_bo.finetune.adapters.fused import fuse
from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.errors import ConfigError, OracleError

ADAPTER = "default"
INITS = ("kaiming", "residual_svd", "eva", "gradient", "loftq", "lq_lora", "pissa")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """How adapters are built.

    Args:
        alpha_over_rank: LoRA's scale alpha / r, the same at every rank.
        init: Initialisation of A and B, one of ``INITS`` (see ``adapters.inits.Initialiser``); ``"kaiming"`` is
            LoRA's own (A uniform, B = 0).
        iterations: Alternations of ``"loftq"``, and the most of ``"lq_lora"``.
    """

    alpha_over_rank: float = 2.0
    init: str = "kaiming"
    iterations: int = 5

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise ConfigError(f"adapter.init must be one of {list(INITS)}; got {self.init!r}")
        if self.iterations < 1:
            raise ConfigError(f"adapter.iterations must be at least 1; got {self.iterations}")


def lora_config(ranks: Mapping[str, int], settings: AdapterSettings) -> LoraConfig:
    """Return PEFT's configuration for these module ranks; modules of rank 0 are left out.

    ``rank_pattern`` keys are regular expressions of which the first match wins: names are escaped and anchored,
    and every module is named, so that no default is ever used.
    """
    return LoraConfig(**peft_patterns(ranks, settings.alpha_over_rank), lora_dropout=0.0, bias="none",
                      task_type="CAUSAL_LM")


def attach(model: Any, ranks: Mapping[str, int], settings: AdapterSettings, train_seed: int,
           dtype: torch.dtype, initial: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None) -> PeftModel:
    """Wrap ``model`` in place, initialise, and check the realised ranks and scales.

    Two allocations with one seed share the first rows of every A, so that they differ by their ranks and formats alone.

    Args:
        model: The bare model.
        ranks: Rank of every linear; 0 or missing: no adapter.
        settings: How adapters are built.
        train_seed: Seed of random initialisations.
        dtype: Of the adapters.
        initial: A (``k x in``) and B (``out x k``) of linears that do not start at random; where ``k`` is less than the
            rank, as on a narrower linear, the rest does.

    Raises:
        OracleError: If PEFT realised another rank, scale or set of modules than requested.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT draws an initialisation of its own, replaced below, and reads an attribute that transformers renamed
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapped = get_peft_model(model, lora_config(ranks, settings), autocast_adapter_dtype=False)
    for name, layer in lora_layers(model).items():
        rank = layer.r[ADAPTER]
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        device = next(iter(_base_tensors(layer))).device
        bound = 1.0 / np.sqrt(down.in_features)
        words = [train_seed, *name.encode()]
        draws = np.random.default_rng(np.random.SeedSequence(words)).random((rank, down.in_features), dtype=np.float32)
        first = torch.from_numpy(draws).mul_(2 * bound).sub_(bound)
        second = torch.zeros(up.out_features, rank)
        if initial is not None and name in initial:
            known = len(initial[name][0])
            first[:known], second[:, :known] = initial[name]
        with torch.no_grad():
            down.weight = Parameter(first.to(device, dtype, copy=True))
            up.weight = Parameter(second.to(device, dtype, copy=True).contiguous())
    check_realised(model, ranks, settings)
    fuse(model)
    return wrapped


def _base_tensors(layer: LoraLayer) -> list[torch.Tensor]:
    base = layer.get_base_layer()
    return [*base.parameters(), *base.buffers()] or [base.W_q]


def lora_layers(model: Any) -> dict[str, LoraLayer]:
    """Return the adapted modules by their name within the bare model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def check_realised(model: Any, ranks: Mapping[str, int], settings: AdapterSettings) -> None:
    """Compare every module's realised rank and scale with the requested ones.

    Raises:
        OracleError: If they differ.
    """
    layers = lora_layers(model)
    wanted = {name: rank for name, rank in ranks.items() if rank > 0}
    if set(layers) != set(wanted):
        raise OracleError(f"adapters were requested on {len(wanted)} modules and realised on {len(layers)}: "
                          f"{sorted(set(wanted) ^ set(layers))[:4]}")
    for name, layer in layers.items():
        scale = layer.scaling[ADAPTER]
        if layer.r[ADAPTER] != wanted[name] or abs(scale - settings.alpha_over_rank) > 1e-9:
            raise OracleError(f"{name}: requested rank {wanted[name]} and scale {settings.alpha_over_rank}, "
                              f"realised {layer.r[ADAPTER]} and {scale}")


def detach(model: Any) -> None:
    """Remove every adapter from the bare ``model``, leaving its (quantised) linears in place."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False


def adapter_parameters(model: Any) -> dict[str, dict[str, Parameter]]:
    """Return the trainable weights of every adapted module: ``{module: {"A": r x in, "B": out x r}}``."""
    return {name: {"A": layer.lora_A[ADAPTER].weight, "B": layer.lora_B[ADAPTER].weight}
            for name, layer in lora_layers(model).items()}
