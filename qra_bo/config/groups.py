"""The groups of the configuration: their keys, types and the rules of every field.

Rules between fields are in ``config/rules.py``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le, Lt
from pydantic import Discriminator, Field, StrictBool, StrictFloat, StrictInt, Tag, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from qra_bo.memory.budget import parse_size
from qra_bo.memory.formats import parse_format
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import REFUSED, Count, Group, Natural, NonNegative, Positive, Texts, accepted_by, must_be

LR_EXPONENTS = {"constant": 0.0, "inverse_sqrt": 0.5, "inverse": 1.0}

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

        Only for a configuration that the user composed: never for one that was read from a run's folder.
        """
        from hydra.utils import instantiate  # half a second that checking and planning do without

        return instantiate({**self.target, "_partial_": True}, _convert_="all")(**given)


@with_config(Group.model_config)
class ModelConfig(TypedDict):
    """Keys of ``RunConfig.model`` (see ``conf/model/hf.yaml``); numbers are given together or not at all."""

    name: str
    source: Literal["wheel", "random", "hub", "path"]
    path: str | None
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
    """How many full-trial equivalents a search may spend."""

    name: str
    max_full_trials: Count
    uniform_baselines: Count | None
    calibration_baselines: Count
    references: StrictBool
    ranking_top: Natural
    rate_factors: OtherRates


class MemoryConfig(Group):
    """Bytes that the budget bounds, and options of the memory model and of ``task=memory``."""

    scope: Literal["peak", "stored"]
    headroom: Annotated[str, accepted_by(parse_size)]
    format: Literal["table", "json"]
    verify: StrictBool
    calibrate: StrictBool


class FinetuneOracleConfig(Group):
    """Real fine-tuning."""

    name: Literal["finetune"]
    trains: ClassVar[bool] = True


class BenchmarkOracleConfig(Group):
    """An emulator fitted on a table of real trials."""

    name: Literal["benchmark"]
    table: str | None
    emulator: Literal["boosted", "network"]
    noise: NonNegative | None
    trains: ClassVar[bool] = False


class SyntheticOracleConfig(Group):
    """A planted optimum."""

    name: Literal["synthetic"]
    noise: NonNegative
    trains: ClassVar[bool] = False


class OwnOracleConfig(Target):
    """An oracle of the user's own package, made by its ``_target_``."""

    trains: ClassVar[bool] = False


def _kind_of_oracle(value: Any) -> Any:
    """Return the option's name, or ``"own"`` for an oracle that is made by its ``_target_``."""
    if isinstance(value, Mapping):
        return "own" if "_target_" in value else value.get("name")
    return "own" if isinstance(value, Target) else getattr(value, "name", None)


OracleConfig = Annotated[
    Annotated[FinetuneOracleConfig, Tag("finetune")] | Annotated[BenchmarkOracleConfig, Tag("benchmark")]
    | Annotated[SyntheticOracleConfig, Tag("synthetic")] | Annotated[OwnOracleConfig, Tag("own")],
    Discriminator(_kind_of_oracle)]


class SensitivityConfig(Group):
    """File of a sensitivity profile that is used instead of measuring one, or ``None``."""

    path: str | None


class SurrogateConfig(Group):
    """File of a prior that ``python -m qra_bo.prior`` learned from earlier runs, or ``None``."""

    prior: str | None


def _check_formats(formats: Mapping[int, Sequence[str]]) -> None:
    for bits, names in formats.items():
        stored = [parse_format(name).bits for name in names]
        if set(stored) - {bits} or len(set(names)) < len(names):
            raise ConfigError(f"the formats of {bits} bits must be distinct and store {bits} bits; got {list(names)}, "
                              f"of {stored} bits")


class QuantizerConfig(Group):
    """Storage formats that serve each bit-width, and how codes are chosen: never ``"auto"`` once it is composed."""

    formats: Annotated[dict[int, tuple[str, ...]], accepted_by(_check_formats)]
    rounding: Literal["auto", "rtn", "gptq"]
    tokens: Count


class AdapterConfig(Group):
    """How adapters are initialised and how fast they learn."""

    init: Literal["kaiming", "residual_svd", "eva", "gradient", "loftq", "lq_lora", "pissa"]
    iterations: Count
    alpha_over_rank: Positive
    lr: Positive
    lr_rule: Literal["constant", "inverse_sqrt", "inverse"]

    @property
    def lr_exponent(self) -> float:
        """``p`` of ``lr(r) = lr (16 / r)^p``."""
        return LR_EXPONENTS[self.lr_rule]


class TrainConfig(Group):
    """What all candidates of a search share in training."""

    batch: Count
    length: Annotated[StrictInt, Ge(2)]
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


class FidelityConfig(Group):
    """Optimiser steps of a full-fidelity trial, and of its low-fidelity prefix (``None``: no low fidelity)."""

    high: Count
    low: Count | None


class EvalConfig(Group):
    """Held-out tokens of one trial, sequences in a batch of them, and tasks of ``task=evaluate``."""

    tokens: Count
    batch: Count
    tasks: Texts
    limit: Count | None


class CalibrateConfig(Group):
    """Factors on ``adapter.lr`` that are tried on a uniform baseline before the search."""

    lr_scales: Scales


class ConfirmConfig(Group):
    """Unseen training seeds of the confirmation; how many times as long rankings are checked."""

    seeds: Annotated[StrictInt, must_be("0 (no confirmation) or at least 2", lambda n: n == 0 or n >= 2)]
    ranking_factor: Count


class WorkerConfig(Group):
    """Limits of worker processes in seconds, multiples of earlier durations and repeats; ``None``: no limit."""

    deadline_seconds: Positive | None
    slowdown: Positive | None
    retries: Natural
    checkpoint_seconds: NonNegative


class LocalExecutorConfig(Group):
    """Worker processes of this machine, and how many trials run at once."""

    name: Literal["local"]
    workers: Count


class RayExecutorConfig(Group):
    """Workers of a Ray cluster (``address=None``: one on this machine, for this run) and the resources of each."""

    name: Literal["ray"]
    workers: Count
    address: str | None
    cpus: NonNegative | None
    gpus: NonNegative | None
    memory: Annotated[str, accepted_by(parse_size)] | None


ExecutorConfig = Annotated[LocalExecutorConfig | RayExecutorConfig, Field(discriminator="name")]


class ExportConfig(Group):
    """What ``task=export`` writes, what ``merged`` merges into, and whether every export is loaded again."""

    targets: Texts | None
    merged_base: Literal["dequantised", "original"]
    check: StrictBool


class FinalConfig(Group):
    """Length of the final fine-tune of the winner; ``steps`` wins where it is given."""

    steps: Natural | None
    epochs: NonNegative
