"""The typed configuration of a run: one field for every key of ``conf/config.yaml``, frozen and hashed."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, PlainSerializer, PlainValidator, PrivateAttr, StrictBool, StrictFloat, StrictInt

from qra_bo.config import groups
from qra_bo.config.check import validated
from qra_bo.config.resume import of_the_result
from qra_bo.finetune.data.options import DataConfig
from qra_bo.finetune.training.final import FinalConfig
from qra_bo.memory.budget import Budget, parse_budget
from qra_bo.memory.cards import Card, card_by_key, card_key
from qra_bo.memory.file_formats import STORED
from qra_bo.space.space import check_ladder
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import ONE_IS_A_LIST, Group, Natural, Positive, UserPath, accepted_by, must_be, refusing

BudgetSpec = Annotated[Budget, PlainValidator(refusing(parse_budget)), PlainSerializer(str)]
"""A budget, parsed here and nowhere else; a JSON value holds its text."""


class RunConfig(Group):
    """One run. ``conf/config.yaml`` and its groups say what every key means and hold every default."""

    task: Literal["search", "finetune", "memory", "profile", "evaluate", "export", "report"]
    model: groups.ModelConfig
    budget: Annotated[tuple[BudgetSpec, ...], ONE_IS_A_LIST,
                      must_be("a size such as 10GB, or a list of sizes, each given once",
                              lambda sizes: 0 < len(sizes) == len(set(sizes)))]
    gpu: Annotated[str, AfterValidator(refusing(card_key))] | None
    bits: Annotated[tuple[StrictInt, ...], accepted_by(lambda bits: bits and check_ladder("bits", bits))]
    ranks: Annotated[tuple[StrictInt, ...], accepted_by(lambda ranks: check_ladder("ranks", ranks))]
    max_average_bits: StrictFloat | None
    granularity: Literal["layer", "block", "fused", "module"]
    codes: Literal["chosen", "stored"]
    profiling: Literal["gradients", "direct"]
    embeddings: Literal["auto", 16, 8, 6]
    serve: Literal["any", "transformers", "vllm", "llamacpp", "mlx", "exllamav3"]
    effort: groups.EffortConfig
    seed: Natural
    out: UserPath | None
    resume: StrictBool
    max_hours: Positive | None
    device: Annotated[str, must_be("auto, cpu, or for a GPU cuda or cuda:N",
                                   re.compile(r"auto|cpu|cuda(:\d+)?").fullmatch)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    display: Literal["auto", "plain", "none"]
    allocation: str | None
    memory: groups.MemoryConfig
    oracle: groups.OracleConfig
    data: DataConfig
    method: groups.Target
    search: groups.SearchConfig
    surrogate: groups.SurrogateConfig
    quantizer: groups.QuantizerConfig
    adapter: groups.AdapterConfig
    train: groups.TrainConfig
    fidelity: groups.FidelityConfig
    eval: groups.EvalConfig
    calibrate: groups.CalibrateConfig
    confirm: groups.ConfirmConfig
    final: FinalConfig
    executor: groups.ExecutorConfig
    export: groups.ExportConfig
    logger: groups.Target
    worker: groups.WorkerConfig
    _unresolved: dict[str, Any] = PrivateAttr(default_factory=dict)
    _words: tuple[str, ...] = PrivateAttr(default=())

    @property
    def model_name(self) -> str:
        return self.model["name"]

    @property
    def card(self) -> Card | None:
        """The card that ``gpu`` names."""
        return None if self.gpu is None else card_by_key(self.gpu)

    @property
    def embedding_bits(self) -> int:
        """``embeddings``; 16 where it is ``auto`` and no budget has decided (``pipeline.prepare``)."""
        return 16 if self.embeddings == "auto" else self.embeddings

    @property
    def final_workers(self) -> int:
        """Workers that share the final fine-tune: those of this machine, and no more than a step has sequences."""
        return min(self.executor.workers, self.train.step_sequences) if self.executor.name == "local" else 1

    @property
    def stored(self) -> bool:
        """Whether the base keeps the codes of its GGUF file."""
        return self.codes == STORED

    @property
    def format_names(self) -> tuple[str, ...]:
        """Storage formats of the search in ladder order: by bits, then as listed; none for the codes of a file."""
        return tuple(name for bits in self.bits for name in self.quantizer.formats[bits])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values only, the same in every process for the same run."""
        return self.model_dump(mode="json")

    @property
    def words(self) -> tuple[str, ...]:
        """Flags and overrides of the command that it was composed from; empty where it was not."""
        return self._words

    def composed_from(self, overrides: Sequence[str], interpolations: Mapping[str, Any]) -> Self:
        """Return a copy that states its command line, and writes these ``interpolations`` in place of their values."""
        changed = self.model_copy()
        changed._words, changed._unresolved = tuple(overrides), dict(interpolations)
        return changed

    def to_journal(self) -> dict[str, Any]:
        """Return ``to_dict`` with the interpolations of environment variables in place of their values.

        Numbers and truth values stay: they can't be told from the results.
        """
        return _replaced(self.to_dict(), self._unresolved)

    @property
    def config_sha256(self) -> str:
        """Hash over what defines the results: a run may be continued by any configuration of the same hash."""
        kept = of_the_result(self.to_dict())
        return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _replaced(values: Mapping[str, Any], by_key: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {key: _replaced(value, by_key, f"{prefix}{key}.") if isinstance(value, Mapping)
            else by_key.get(f"{prefix}{key}", value) for key, value in values.items()}


def config_from_dict(data: Mapping[str, Any]) -> RunConfig:
    """Inverse of ``RunConfig.to_dict``. What a ``_target_`` names is not imported: ``data`` may be someone else's.

    Raises:
        ConfigError: If it is not the dictionary of a configuration.
    """
    config, problems = validated(RunConfig, data)
    if config is None:
        raise ConfigError([p.message for p in problems])
    return config
