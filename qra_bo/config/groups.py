"""The groups of the configuration: their keys, types and the rules of every field.

``conf/`` says what every key means, beside its default. Rules between fields are in ``config/rules.py``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le, Lt
from pydantic import Discriminator, Field, StrictBool, StrictFloat, StrictInt, Tag, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from qra_bo.memory import FORMATS, parse_format, parse_size
from qra_bo.memory.budget import headroom_bytes
from qra_bo.memory.file_formats import STORED_FORMATS
from qra_bo.oracle.protocol import FINETUNE
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import (
    ONE_IS_A_LIST,
    REFUSED,
    Count,
    Group,
    Natural,
    Noise,
    NonNegative,
    Positive,
    Texts,
    UserPath,
    accepted_by,
    must_be,
)

BUILT_IN = (FINETUNE, "synthetic")
"""Names of the oracles of this package, by which journals and reports tell them from a user's own."""
Share = Annotated[StrictFloat, Ge(0), Le(1)]
Scales = Annotated[tuple[StrictFloat, ...], must_be(
    "a list of at most 50 distinct numbers from 1e-6 to 1e6, e.g. [0.5,1,2]",
    lambda scales: len(set(scales)) == len(scales) <= 50 and 1e-6 <= min(scales, default=0) <= max(scales) <= 1e6)]


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


@with_config(Group.model_config)
class ModelConfig(TypedDict):
    """Keys of ``RunConfig.model``; numbers are given together, or all ``None`` and read from the model's own files."""

    name: str
    source: Literal["wheel", "random", "path"]
    path: UserPath | tuple[UserPath, ...] | None
    gguf_file: str | tuple[str, ...] | None
    revision: str | tuple[str, ...] | None
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
    n_experts: Natural | None
    experts_per_token: Natural | None
    trust_remote_code: StrictBool


class EffortConfig(Group):
    """Limits of a search and of what accompanies it."""

    name: str
    max_full_trials: Natural
    uniform_baselines: Count | None
    calibration_baselines: Count
    references: StrictBool
    sequential: StrictBool
    stop: Share | None


class MemoryConfig(Group):
    """Options of the memory model and of ``task=memory``."""

    scope: Literal["peak", "stored"]
    headroom: Annotated[str, accepted_by(lambda text: headroom_bytes(text, "cpu"))]
    format: Literal["table", "json"]


class SearchConfig(Group):
    """When a run searches, and the training whose loss it minimises."""

    force: StrictBool
    length: Literal["final", "trial"]


class SurrogateConfig(Group):
    """Exchange rates between bits and ranks, from a file."""

    rates: str


def _check_formats(formats: Mapping[int, Sequence[str]]) -> None:
    for bits, names in formats.items():
        if of_files := sorted(set(names) & STORED_FORMATS.keys() - FORMATS.keys()):
            raise ConfigError(f"{', '.join(of_files)} are formats of files, which codes=stored trains on")
        stored = [parse_format(name).bits for name in names]
        if set(stored) - {bits} or len(set(names)) < len(names):
            raise ConfigError(f"the formats of {bits} bits must be distinct and store {bits} bits; got {list(names)}, "
                              f"of {stored} bits")


class QuantizerConfig(Group):
    """Storage formats of each bit-width, and the choice of codes; ``rounding: auto`` is replaced in composition,
    ``tokens: auto`` by ``gptq_tokens``."""

    formats: Annotated[dict[int, tuple[str, ...]], accepted_by(_check_formats)]
    rounding: Literal["auto", "rtn", "gptq"]
    tokens: Count | Literal["auto"]


class AdapterConfig(Group):
    """Where adapters are, and how fast they learn; ``lr: auto`` is replaced in composition."""

    alpha_over_rank: Positive
    lr: Annotated[Positive, Ge(1e-12), Le(10**6)]
    lr_rule: Literal["constant", "inverse_sqrt", "inverse", "by_length"]
    experts: Literal["none", "each"]


class TrainConfig(Group):
    """What all candidates of a search share in training."""

    name: str
    batch: Annotated[Count, Le(10**6)]
    accumulate: Annotated[Count, Le(10**6)]
    length: Annotated[StrictInt, Ge(2), Le(10**6)]
    packing: Literal["joined", "isolated"]
    warmup: Annotated[StrictFloat, Ge(0), Lt(1)]
    lr_floor: Share
    weight_decay: NonNegative
    betas: Annotated[tuple[StrictFloat, ...], must_be("two numbers of at least 0 and below 1",
                                                      lambda v: len(v) == 2 and all(0 <= b < 1 for b in v))]
    eps: Positive
    clip: NonNegative
    optimizer: Literal["adamw", "adamw_8bit"]
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
    """Optimiser steps of a trial."""

    high: Count
    low: Count | None


class EvalConfig(Group):
    """Evaluation of trials, and of a finished run by ``task=evaluate``."""

    sequences: Count
    test_times: Count
    tasks: Texts
    limit: Count | None
    against: str | None

    def on(self, split: str) -> int:
        """Return the held-out sequences of a look at ``split``."""
        return self.sequences * (self.test_times if split == "test" else 1)


class CalibrateConfig(Group):
    """Calibration of the learning rate."""

    lr_scales: Scales


class ConfirmConfig(Group):
    """Comparison with the best uniform choice."""

    seeds: Annotated[StrictInt, must_be("0 (no confirmation) or at least 2", lambda n: n == 0 or n >= 2)]


class ExportConfig(Group):
    """Exports that are written and checked."""

    targets: Texts | None
    gguf: Annotated[tuple[Literal["base", "adapter", "merged-f16", "merged-q8_0", "base-f32"], ...], ONE_IS_A_LIST]
    check: StrictBool | Literal["auto"]


class FinetuneOracleConfig(Group):
    """Real fine-tuning. ``trains``: of an oracle whose winner is fine-tuned."""

    name: Literal["finetune"]
    trains: ClassVar[bool] = True


class SyntheticOracleConfig(Group):
    """A planted optimum; ``noise`` is the standard deviation of a loss over training seeds (nats)."""

    name: Literal["synthetic"]
    noise: Noise
    trains: ClassVar[bool] = False


class OwnOracleConfig(Target):
    """An oracle of the user's own package, made by its ``_target_``."""

    trains: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        """Refuse the name that an option leaves behind: reports would show results as those of real fine-tuning."""
        if self.name in BUILT_IN:
            raise PydanticCustomError(REFUSED, "its name must not be one of {known}, which have no _target_; got "
                                      "'{name}': give oracle.name=NAME too",
                                      {"known": ", ".join(BUILT_IN), "name": self.name})
        return self


def _kind_of_oracle(value: Any) -> Any:
    """Return the option's name, or ``"own"`` for an oracle that is made by its ``_target_``."""
    if isinstance(value, Mapping):
        return "own" if "_target_" in value else value.get("name")
    return "own" if isinstance(value, Target) else getattr(value, "name", None)


OracleConfig = Annotated[
    Annotated[FinetuneOracleConfig, Tag("finetune")] | Annotated[SyntheticOracleConfig, Tag("synthetic")]
    | Annotated[OwnOracleConfig, Tag("own")],
    Discriminator(_kind_of_oracle)]


class WorkerConfig(Group):
    """Limits of worker processes; see ``execution.pool.Limits``."""

    deadline_seconds: Positive | None
    checkpoint_seconds: NonNegative
    spill_above: Annotated[str, accepted_by(lambda text: text == "auto" or parse_size(text))]


class LocalExecutorConfig(Group):
    """Worker processes of this machine."""

    name: Literal["local"]
    workers: Count
    elsewhere: ClassVar[bool] = False


class RayExecutorConfig(Group):
    """Workers of a Ray cluster, and the resources of each."""

    name: Literal["ray"]
    workers: Count
    address: str | None
    cpus: NonNegative | None
    gpus: NonNegative | None
    memory: Annotated[str, accepted_by(parse_size)] | None

    @property
    def elsewhere(self) -> bool:
        """Whether workers are on other machines, so that this one holds no model."""
        return self.address is not None


ExecutorConfig = Annotated[LocalExecutorConfig | RayExecutorConfig, Field(discriminator="name")]
