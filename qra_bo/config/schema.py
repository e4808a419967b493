"""The typed configuration of a run: what ``conf/`` composes to, checked, frozen and hashed."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qra_bo.finetune.data.options import DataConfig
from qra_bo.oracle.protocol import FINETUNE

LR_EXPONENTS = {"constant": 0.0, "inverse_sqrt": 0.5, "inverse": 1.0}
NOT_OF_THE_RESULT = ("task", "effort", "max_hours", "out", "resume", "display", "allocation", "worker",
                     "executor", "export", "logger", "mirror")
"""Keys that may differ between a run and its continuation: they bound or show it and change no evaluation."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Keys of ``RunConfig.model`` (see ``conf/model/hf.yaml``); numbers are given together or not at all."""

    name: str
    source: Literal["wheel", "random", "hub", "path"]
    path: str | None
    gguf_file: str | None
    revision: str | None
    family: str | None
    n_layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    n_heads: int | None
    n_kv_heads: int | None
    head_dim: int | None
    vocab_size: int | None
    tied: bool | None
    attention_bias: bool | None
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class EffortConfig:
    """How many full-trial equivalents a search may spend."""

    name: str
    max_full_trials: int
    uniform_baselines: int | None
    calibration_baselines: int
    references: bool
    ranking_top: int
    rate_factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """What the budget bounds, what is left free where it is ``auto``, how ``task=memory`` prints, and whether measured
    peaks of the device replace what is assumed of its allocator."""

    scope: Literal["peak", "stored"]
    headroom: str
    format: Literal["table", "json"]
    verify: bool
    calibrate: bool


@dataclass(frozen=True, slots=True)
class OracleConfig:
    """What answers: really fine-tuning, a table of real evaluations, or a planted optimum."""

    name: Literal["finetune", "benchmark", "synthetic"]
    table: str | None
    emulator: Literal["boosted", "network"]
    noise: float | None

    @property
    def trains(self) -> bool:
        """Whether it really fine-tunes a model; the others are simulated."""
        return self.name == FINETUNE


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """The search method and its own parameters."""

    name: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SensitivityConfig:
    """File of a sensitivity profile that is used instead of measuring one, or ``None``."""

    path: str | None


@dataclass(frozen=True, slots=True)
class SurrogateConfig:
    """File of a prior that earlier runs taught (``python -m qra_bo.prior``), for methods that take one; or ``None``."""

    prior: str | None


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """Storage formats that serve each bit-width, and how codes are chosen: never ``"auto"`` once it is composed."""

    formats: dict[int, tuple[str, ...]]
    rounding: Literal["auto", "rtn", "gptq"]
    tokens: int


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """How adapters start and how fast they learn."""

    init: Literal["kaiming", "residual_svd", "eva", "gradient", "loftq", "lq_lora", "pissa"]
    iterations: int
    alpha_over_rank: float
    lr: float
    lr_rule: Literal["constant", "inverse_sqrt", "inverse"]

    @property
    def lr_exponent(self) -> float:
        """``p`` of ``lr(r) = lr (16 / r)^p``."""
        return LR_EXPONENTS[self.lr_rule]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What all candidates of a search share in training."""

    batch: int
    length: int
    warmup: float
    lr_floor: float
    weight_decay: float
    betas: tuple[float, ...]
    eps: float
    clip: float
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
    checkpointing: bool
    logits_chunk: int


@dataclass(frozen=True, slots=True)
class FidelityConfig:
    """Optimiser steps of a high-fidelity evaluation, and of its low-fidelity prefix (``None``: no low one)."""

    high: int
    low: int | None


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Held-out tokens looked at in one evaluation, and sequences in a batch of them; tasks that ``task=evaluate`` asks
    the model of a finished run, and how many questions of each (``None``: all)."""

    tokens: int
    batch: int
    tasks: tuple[str, ...]
    limit: int | None


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """Factors on ``adapter.lr`` that are tried on a uniform baseline before the search."""

    lr_scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ConfirmConfig:
    """Unseen training seeds of the confirmation; how many times as long rankings are checked."""

    seeds: int
    ranking_factor: int


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Longest silence of a worker process, in seconds, before it counts as hung (``None``: never); how many times what
    such evaluations took one may take beyond that; how often an evaluation is begun again whose worker was lost; least
    time between two checkpoints within one evaluation."""

    deadline_seconds: float | None
    slowdown: float | None
    retries: int
    checkpoint_seconds: float


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Where evaluations run, and how many at once; the rest is for Ray: address of a cluster (``None``: one of this
    machine alone, for this run), and what one worker takes of it."""

    name: Literal["local", "ray"]
    workers: int
    address: str | None
    cpus: float | None
    gpus: float | None
    memory: str | None


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What ``task=export`` writes, what ``merged`` merges into, and whether all of it is loaded again."""

    targets: tuple[str, ...] | None
    merged_base: Literal["dequantised", "original"]
    check: bool


@dataclass(frozen=True, slots=True)
class FinalConfig:
    """Length of the final fine-tune of the winner; ``steps`` wins where it is given."""

    steps: int | None
    epochs: float


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. ``conf/config.yaml`` and its groups say what every key means and hold every default."""

    task: str
    model: dict[str, Any]
    budget: tuple[str, ...]
    bits: tuple[int, ...]
    ranks: tuple[int, ...]
    max_average_bits: float | None
    granularity: Literal["layer", "block", "fused", "module"]
    effort: EffortConfig
    seed: int
    out: str | None
    resume: bool
    max_hours: float | None
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    display: Literal["auto", "plain", "none"]
    mirror: str | None
    allocation: str | None
    memory: MemoryConfig
    oracle: OracleConfig
    data: DataConfig
    method: MethodConfig
    sensitivity: SensitivityConfig
    surrogate: SurrogateConfig
    quantizer: QuantizerConfig
    adapter: AdapterConfig
    train: TrainConfig
    fidelity: FidelityConfig
    eval: EvalConfig
    calibrate: CalibrateConfig
    confirm: ConfirmConfig
    final: FinalConfig
    executor: ExecutorConfig
    export: ExportConfig
    logger: dict[str, Any]
    worker: WorkerConfig

    @property
    def model_name(self) -> str:
        return str(self.model["name"])

    @property
    def format_names(self) -> tuple[str, ...]:
        """Storage formats of the search in ladder order: by bits, then as listed."""
        return tuple(name for bits in self.bits for name in self.quantizer.formats[bits])

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; ``RunConfig`` of the same run in every process gives the same."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @property
    def config_sha256(self) -> str:
        """Hash over what defines the results: a run may be continued by any configuration of the same hash."""
        kept = {key: value for key, value in self.to_dict().items() if key not in NOT_OF_THE_RESULT}
        for group, key in (("memory", "format"), ("memory", "verify"), ("eval", "tasks"), ("eval", "limit")):
            del kept[group][key]  # how a plan is printed and what a model is asked later change no result
        return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def with_changes(self, **changes: Any) -> "RunConfig":
        """A copy with some top-level fields replaced; not checked again."""
        return dataclasses.replace(self, **changes)


def load_config(overrides: Sequence[str] = ()) -> RunConfig:
    """Compose ``conf/`` with command-line style overrides, e.g. ``["+model=tiny", "budget=uniform:4,4"]``.

    Raises:
        ConfigError: With every problem of the overrides and of what they compose to, all at once.
    """
    from qra_bo.config.compose import compose_config  # hydra is loaded only by who composes

    return compose_config(overrides)
