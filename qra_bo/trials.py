"""What passes between searcher, engine, oracle and journal: frozen records with a JSON codec."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qra_bo.space import Allocation
from qra_bo.utils.errors import JournalError

SCHEMA_VERSION = 1


class Fidelity(StrEnum):
    """How long a candidate is trained: ``low`` is a prefix of ``high`` under the same schedule."""

    LOW = "low"
    HIGH = "high"


class TrialState(StrEnum):
    """How an evaluation ended; everything but ``ok`` is a result without a loss, not a crash."""

    OK = "ok"
    OOM = "oom"
    DIVERGED = "diverged"
    FAILED = "failed"


OWN_BASE = ("loftq", "pissa", "lq_lora")
"""Starts of adapters that change the quantised base to ``quantise(W - scale B A)``, which depends on the rank."""


def rounding_of(config: Mapping[str, Any]) -> str:
    """``quantizer.rounding`` of a recorded configuration; before there was a choice, codes were the nearest."""
    return str(config.get("quantizer", {}).get("rounding", "rtn"))


LATER_FORMATS = {"5": ["hqq5-g128"], "6": ["hqq6-g128"]}
"""Of bit-widths that older configurations do not name, the formats that serve them unless others are chosen."""


def deciding_quantizer(quantizer: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration's ``quantizer`` that decide about codes: with the nearest ones its formats alone, and
    of these not ``LATER_FORMATS``, for older journals have no more."""
    kept = dict(quantizer)
    if isinstance(kept.get("formats"), Mapping):
        kept["formats"] = {bits: names for bits, names in kept["formats"].items()
                           if LATER_FORMATS.get(str(bits)) != list(names)}
    if rounding_of({"quantizer": quantizer}) != "rtn":
        return kept
    return {key: value for key, value in kept.items() if key not in ("rounding", "tokens")}


def stating_codes(config: Any) -> Any:
    """A recorded configuration that says which codes it has, with nothing that these do not depend on."""
    if not isinstance(config, Mapping) or not isinstance(config.get("quantizer"), Mapping):
        return config
    return {**config, "quantizer": {"rounding": "rtn", **deciding_quantizer(config["quantizer"])}}


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a searcher wants to know next.

    Args:
        allocation: The candidate.
        fidelity: How long to train it.
        stage: Where it comes from: ``"baseline"``, ``"evolution"``, ``"trust_region"``, ``"global"`` ...
    """

    allocation: Allocation
    fidelity: Fidelity
    stage: str


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What the engine asks of an oracle.

    Args:
        allocation: The candidate.
        steps: Optimiser steps to train in all, under a schedule of ``schedule_steps``.
        schedule_steps: Length of the learning-rate schedule (``steps`` at high fidelity).
        train_seed: Seed of data order and adapter initialisation.
        split: ``"validation"`` (all that a search sees) or ``"test"``.
        lr_scale: Factor on the calibrated learning rate (calibration and robustness checks; else 1).
        init: How the adapters start; ``None``: as configured.
        codes: ``"nearest"``: those that the formats' libraries choose; ``None``: as configured.
    """

    allocation: Allocation
    steps: int
    schedule_steps: int
    train_seed: int
    split: str = "validation"
    lr_scale: float = 1.0
    init: str | None = None
    codes: str | None = None

    @property
    def key(self) -> str:
        """Names this evaluation: two requests with one key have one result."""
        return (f"{self.allocation.fingerprint}-{self.steps}of{self.schedule_steps}-t{self.train_seed}"
                f"-{self.split}-lr{self.lr_scale:g}{self.how}")

    @property
    def how(self) -> str:
        """A suffix for names: start and codes where they are not as configured."""
        return "".join(f"-{part}" for part in (self.init, self.codes) if part is not None)


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The largest memory of one phase of an evaluation, in bytes.

    Args:
        phase: ``"load"``, ``"forward"``, ``"backward"``, ``"step"`` or ``"evaluation"``.
        allocated: Of live storages.
        reserved: By the CUDA allocator; ``None`` on a CPU.
    """

    phase: str
    allocated: int
    reserved: int | None


def peaks_to_json(peaks: Iterable[PhasePeak]) -> dict[str, dict[str, int | None]]:
    """Bytes by phase."""
    return {p.phase: {"allocated": p.allocated, "reserved": p.reserved} for p in peaks}


def peaks_from_json(data: Mapping[str, Any]) -> tuple[PhasePeak, ...]:
    """Inverse of ``peaks_to_json``; raises ``KeyError``, ``TypeError`` or ``ValueError`` where it is something else."""
    return tuple(PhasePeak(str(phase), int(found["allocated"]),
                           None if found["reserved"] is None else int(found["reserved"]))
                 for phase, found in data.items())


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What an oracle answers.

    Args:
        state: How it ended.
        loss: Mean held-out loss per target token, or ``None`` unless ``state`` is ``ok``.
        loss_se: Standard error of ``loss`` over evaluation sequences, or ``None``.
        curve: ``(step, held-out loss)`` at the recorded steps; the last is ``(steps, loss)``.
        new_steps: Optimiser steps run for this request (fewer than ``steps`` if continued from a checkpoint).
        training_tokens: Tokens that went forward and backward for this request.
        forward_tokens: Tokens that went forward only.
        measured_bytes: Peak bytes of the configured memory scope, or ``None`` where not measured.
        seconds: Wall time of this request.
        switch_seconds: The part of it spent on switching the model to the allocation.
        message: Why it is not ``ok``, or empty.
        peaks: Measured memory by phase, whatever the scope; empty where nothing was measured.
    """

    state: TrialState
    loss: float | None
    loss_se: float | None
    curve: tuple[tuple[int, float], ...]
    new_steps: int
    training_tokens: int
    forward_tokens: int
    measured_bytes: int | None
    seconds: float
    switch_seconds: float = 0.0
    message: str = ""
    peaks: tuple[PhasePeak, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished evaluation as the journal holds it and as a searcher is told of it."""

    id: int
    allocation: Allocation
    bits: tuple[int, ...]
    stage: str
    fidelity: Fidelity
    spec: TrialSpec
    seed: int
    result: TrialResult
    predicted_bytes: int

    @property
    def ok(self) -> bool:
        return self.result.state is TrialState.OK

    @property
    def loss(self) -> float | None:
        return self.result.loss

    def to_json(self) -> dict[str, Any]:
        m, r = self.result, self.spec
        return {"event": "evaluation", "id": self.id, "key": r.key, "fingerprint": self.allocation.fingerprint,
                "bits": list(self.bits), **self.allocation.to_json(), "stage": self.stage,
                "fidelity": self.fidelity.value, "steps": r.steps, "schedule_steps": r.schedule_steps,
                "new_steps": m.new_steps, "train_seed": r.train_seed, "split": r.split, "lr_scale": r.lr_scale,
                "init": r.init, "codes": r.codes, "seed": self.seed, "state": m.state.value,
                "loss": m.loss, "loss_se": m.loss_se,
                "curve": [list(p) for p in m.curve], "training_tokens": m.training_tokens,
                "forward_tokens": m.forward_tokens, "predicted_bytes": self.predicted_bytes,
                "measured_bytes": m.measured_bytes, "seconds": m.seconds, "switch_seconds": m.switch_seconds,
                "message": m.message, "peaks": peaks_to_json(m.peaks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Trial":
        """Inverse of ``to_json``.

        Raises:
            JournalError: If a field is missing or of the wrong type.
        """
        try:
            allocation = Allocation.from_json(data)
            request = TrialSpec(allocation, int(data["steps"]), int(data["schedule_steps"]),
                                        int(data["train_seed"]), str(data["split"]), float(data["lr_scale"]),
                                        data.get("init"), data.get("codes"))
            loss = None if data["loss"] is None else float(data["loss"])
            measured = None if data["measured_bytes"] is None else int(data["measured_bytes"])
            measurement = TrialResult(
                TrialState(data["state"]), loss, None if data["loss_se"] is None else float(data["loss_se"]),
                tuple((int(s), float(v)) for s, v in data["curve"]), int(data["new_steps"]),
                int(data["training_tokens"]), int(data["forward_tokens"]), measured, float(data["seconds"]),
                float(data["switch_seconds"]), str(data["message"]),
                peaks_from_json(data.get("peaks", {})))  # journals of earlier versions have none
            return cls(int(data["id"]), allocation, tuple(int(b) for b in data["bits"]), str(data["stage"]),
                       Fidelity(data["fidelity"]), request, int(data["seed"]), measurement,
                       int(data["predicted_bytes"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(f"an evaluation in the journal is malformed: {error!r}") from error
