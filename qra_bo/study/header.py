"""What a run is of: the records that its journal begins with."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Le
from pydantic import AfterValidator, StrictInt
from pydantic.dataclasses import dataclass as checked

from qra_bo.oracle.protocol import FINETUNE, SYNTHETIC
from qra_bo.space import StorageFormat, average_bits
from qra_bo.trials import Stored
from qra_bo.utils.fields import model_of

CALIBRATED = "calibrated in the search that found the allocation"
BY_RULE = "adapter.lr by its rule, not calibrated"
"""Sources of a given allocation's learning rate. A file may state another (``learning_rate_source``)."""


_Numbers = StrictInt | Literal["auto"]
_READ = model_of(
    None, train=model_of(None, batch=StrictInt, accumulate=StrictInt, length=StrictInt),
    confirm=model_of(None, seeds=StrictInt), quantizer=model_of(None, rounding=str, tokens=_Numbers),
    embeddings=_Numbers)
"""Values of a recorded configuration by which a run is read; others are only shown."""


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    _READ.model_validate(config)
    return config


@checked(frozen=True, slots=True)
class Given:
    """Allocations to train without a search, in the order of preference: the first that measures within the budget.

    ``reason`` is the end of a sentence; the run keeps ``notes`` as warnings; ``learning_rate`` is as in ``TrialSpec``;
    ``rule`` decided which units of a fractional choice are wider.
    """

    allocations: tuple[Stored, ...]
    reason: str
    learning_rate: float
    rate_source: str = BY_RULE
    notes: tuple[str, ...] = ()
    rule: str | None = None


@checked(frozen=True, slots=True)
class Effort:
    """What a run may spend; an ``extension`` of a run that goes on holds nothing else.

    Args:
        max_full_trials: Full-trial equivalents of the search; 0: the allocation is predicted.
        planned_cost: The same in training tokens.
        uniform_baselines: Number of uniform baselines; ``None``: all.
        references: Whether LoRA and QLoRA are trained.
    """

    effort: str
    max_full_trials: float
    planned_cost: float
    uniform_baselines: int | None
    references: bool


@checked(frozen=True, slots=True)
class Header(Effort):
    """The first event: what the run is of.

    Args:
        units: Names of the ``L`` units; ``unit_numel`` are their parameters.
        formats: The ladder of storage formats, by increasing bits.
        budget_bytes: Hard limit on predicted bytes in ``scope``; ``budget_text`` is the budget as configured.
        high_steps: Optimiser steps of a full-fidelity trial; ``low_steps`` are those of its prefix, if any.
        full_trial_tokens: Cost of one full-fidelity trial in training tokens.
        train_seed: Training seed of the search's trials; ``seed`` is that of the search itself.
        given: What is trained without a search; ``None`` for a search.
        stored: What ``memory.stored.stored_facts`` says of a base that keeps the codes of a file; ``None`` elsewhere.
    """

    schema_version: int
    config: Annotated[Mapping[str, Any], AfterValidator(_checked)]
    config_sha256: str
    version: str
    seed: int
    train_seed: int
    model: str
    granularity: str
    units: tuple[str, ...]
    formats: tuple[StorageFormat, ...]
    ranks: tuple[int, ...]
    unit_numel: tuple[Annotated[int, Gt(0), Le(2**40)], ...]
    budget_bytes: int
    budget_text: str
    max_average_bits: float | None
    scope: str
    oracle: str
    high_steps: int
    low_steps: int | None
    full_trial_tokens: Annotated[float, Gt(0)]
    alpha_over_rank: float
    method: str
    rates_sha256: str | None
    given: Given | None = None
    stored: Mapping[str, Any] | None = None

    def average_bits(self, bits: Sequence[int]) -> float:
        """Return the code bits of an allocation, weighted by parameters, from those of its units; where these are
        rounded, as of stored codes, from those in the file."""
        own = {fmt.bits: self.stored["files"][fmt.name]["unit_codes"] for fmt in self.formats} if self.stored else {}
        return 8 * sum(own[n][unit] for unit, n in enumerate(bits)) / sum(self.unit_numel) if own else \
            average_bits(bits, np.array(self.unit_numel))

    @property
    def unit(self) -> str:
        """Unit of losses, behind a number; empty for an oracle of the user's own, whose objective may be anything."""
        return " nats" if self.oracle in (FINETUNE, SYNTHETIC) else ""

    @property
    def trains(self) -> bool:
        """Whether the run's oracle really fine-tunes a model."""
        return self.oracle == FINETUNE
