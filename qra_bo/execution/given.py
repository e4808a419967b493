"""An executor whose profile was given, so that none is measured."""

from collections.abc import Mapping
from typing import Any

from qra_bo.execution.base import Executor
from qra_bo.execution.messages import ProfileResult
from qra_bo.oracle.protocol import Progress
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialSpec


class GivenProfileExecutor(Executor):
    """Answers ``profile`` with what it was given, at the cost of what a search needs beside it alone; all else is the
    inner executor's.

    Args:
        inner: Runs the oracle.
        profile: Of the units and formats of the search.
        training_tokens: That go forward and backward before the first evaluation all the same, for what all adapters
            start from.
        forward_tokens: That only go forward, for that or for the codes' choice.
    """

    def __init__(self, inner: Executor, profile: SensitivityProfile, training_tokens: int = 0,
                 forward_tokens: int = 0) -> None:
        self._inner, self._profile = inner, profile
        self._tokens = training_tokens, forward_tokens

    @property
    def workers(self) -> int:
        return self._inner.workers

    def describe(self) -> Mapping[str, Any]:
        return self._inner.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult(self._profile, *self._tokens, 0.0)

    def submit(self, request: TrialSpec) -> None:
        self._inner.submit(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        return self._inner.finished(progress)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return self._inner.call(method, kwargs, progress)

    def close(self) -> None:
        self._inner.close()
