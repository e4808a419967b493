"""Where evaluations run: the contract, and the executor that runs them in this process."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qra_bo.errors import ConfigError
from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.records import EvaluationRequest, Measurement
from qra_bo.study.messages import ProfileResult, failure_of, is_result, run_profile


class Executor(Protocol):
    """Runs an oracle. What goes wrong in an evaluation is a ``Measurement``; in anything else, an error."""

    def describe(self) -> Mapping[str, Any]:
        """The oracle's provenance."""
        ...

    def profile(self, progress: Progress) -> ProfileResult:
        """Measure the sensitivities, with their cost."""
        ...

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        """Evaluate one allocation."""
        ...

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """Call a method that only some oracles have (the final fine-tune); arguments and answer are JSON values."""
        ...

    def close(self) -> None:
        """Release what it holds; it may be called twice."""
        ...


@dataclass(frozen=True)
class OracleSpec:
    """How a worker builds its oracle.

    Args:
        target: ``"package.module:callable"``.
        kwargs: Its keyword arguments: JSON values only.

    Raises:
        ConfigError: If ``kwargs`` are not JSON.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.kwargs_json()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the arguments of the oracle {self.target} must be JSON values: {error}") from error

    def kwargs_json(self) -> str:
        return json.dumps(dict(self.kwargs))


class InProcessExecutor:
    """Calls the oracle directly: for cheap oracles, tests and debuggers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def describe(self) -> Mapping[str, Any]:
        return self._oracle.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        return run_profile(self._oracle, progress)

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        start = time.monotonic()
        try:
            return self._oracle.evaluate(request, progress)
        except Exception as error:
            if not is_result(error):
                raise
            return failure_of(error, 0, time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = getattr(self._oracle, method)(**kwargs, progress=progress)
        return answer

    def close(self) -> None:
        self._oracle.close()
