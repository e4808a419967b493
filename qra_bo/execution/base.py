"""Where evaluations run: the contract, and the executor that runs them in this process."""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qra_bo.execution.messages import ProfileResult, failure_of, is_result, oracle_method, run_profile
from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.trials import TrialResult, TrialSpec
from qra_bo.utils.errors import ConfigError


class Executor(Protocol):
    """Runs an oracle. What goes wrong in an evaluation is a ``TrialResult``; in anything else, an error.

    Evaluations are submitted and come back as they finish, in whatever order; all else is asked for and waited for,
    while no evaluation is under way. Signals reach the caller while it waits.
    """

    @property
    def workers(self) -> int:
        """How many evaluations it has under way at once."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """The oracle's provenance."""
        ...

    def profile(self, progress: Progress) -> ProfileResult:
        """Measure the sensitivities, with their cost."""
        ...

    def submit(self, request: TrialSpec) -> None:
        """Have one allocation evaluated, at once or as soon as a worker is free."""
        ...

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        """Wait for the next evaluation that ends, of those submitted and not returned yet (at least one)."""
        ...

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """Evaluate one allocation while nothing else is under way."""
        self.submit(request)
        return self.finished(progress)[1]

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """Call a method that only some oracles have, or ``"package.module:function"`` with the oracle as its first
        argument; arguments and answer are JSON values."""
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


class InProcessExecutor(Executor):
    """Calls the oracle directly, one evaluation after the other: for cheap oracles, tests and debuggers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._waiting: deque[TrialSpec] = deque()

    @property
    def workers(self) -> int:
        return 1

    def describe(self) -> Mapping[str, Any]:
        return self._oracle.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        return run_profile(self._oracle, progress)

    def submit(self, request: TrialSpec) -> None:
        self._waiting.append(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        request, start = self._waiting.popleft(), time.monotonic()
        try:
            return request, self._oracle.evaluate(request, progress)
        except Exception as error:
            if not is_result(error):
                raise
            return request, failure_of(error, 0, time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = oracle_method(self._oracle, method)(**kwargs, progress=progress)
        return answer

    def close(self) -> None:
        self._oracle.close()
