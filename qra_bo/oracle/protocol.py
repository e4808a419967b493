"""The contract of an oracle: what really fine-tunes (or stands in for it, and says so)."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialSpec

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``: called now and then so that a person sees something move."""
TRAINING = "train"
"""``what`` of optimiser steps: they alone say how far an evaluation got."""


def quiet(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


class StopRequested(BaseException):
    """Raised by ``progress`` where the run is to stop now: an oracle that can go on later keeps what it has on disk and
    lets this pass. No ``Exception``, so that nothing takes it for a result."""


@runtime_checkable
class Oracle(Protocol):
    """Evaluates allocations. Deterministic: the same request gives the same loss on the same machine."""

    @property
    def kind(self) -> str:
        """``"finetune"``, ``"benchmark"`` or ``"synthetic"``; stored with every result."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Provenance: device, dtype, threads, data_sha256, package versions; JSON values only."""
        ...

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Measure the sensitivities of the units and formats it was built for."""
        ...

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """Train and evaluate one allocation, telling ``progress`` of every step as ``TRAINING``. OOM and divergence are
        results, not exceptions."""
        ...

    def close(self) -> None:
        """Release the device and temporary files."""
        ...
