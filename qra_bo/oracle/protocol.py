"""The contract of an oracle: it fine-tunes allocations, or simulates that and says so."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialSpec

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``: called now and then, for the display."""
FINETUNE, SYNTHETIC = "finetune", "synthetic"
"""Names of the oracle that really fine-tunes, and of the planted landscape in its unit; others are the user's own."""
TRAINING = "train"
"""``activity`` of optimiser steps: they alone measure how far a trial got."""


def activity(what: str) -> str:
    """Return the name of what is done, without the facts that follow it in brackets."""
    return what.partition(" (")[0]


def quiet(what: str, done: int, total: int) -> None:
    """Ignore progress."""


class StopRequested(BaseException):
    """Raised by ``progress`` to stop a run; an oracle that can go on later writes its checkpoint and lets it pass.

    It is no ``Exception``, so that it is never taken for a result.
    """


@runtime_checkable
class Oracle(Protocol):
    """Evaluator of allocations. The same request gives the same loss on the same CPU; on CUDA, to about rounding."""

    def describe(self) -> Mapping[str, Any]:
        """Return provenance: device, dtype, threads, data_sha256, package versions; JSON values only."""

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Measure the sensitivities of the units and formats it was built for."""

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """Train and evaluate one allocation, calling ``progress`` with every step as ``TRAINING``.

        OOM and divergence are results, not exceptions.
        """

    def close(self) -> None:
        """Release the device and temporary files."""
