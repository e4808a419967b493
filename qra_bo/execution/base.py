"""The executor contract, and the executor that calls its oracle in this process."""

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qra_bo.execution.messages import ProfileResult, failure_of, is_result, oracle_method, run_profile
from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.trials import TrialResult, TrialSpec
from qra_bo.utils.errors import ConfigError


class Executor(ABC):
    """Runs an oracle. A trial that goes wrong gives a ``TrialResult``; anything else that goes wrong is an error.

    Trials are submitted and come back as they finish, in any order; all other methods wait for their answer, while no
    trial is under way. Signals reach the caller while it waits.
    """

    @property
    def workers(self) -> int:
        """Number of trials under way at once."""
        return 1

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Return the oracle's provenance."""

    @abstractmethod
    def profile(self, progress: Progress) -> ProfileResult:
        """Measure the sensitivities, with their cost."""

    @abstractmethod
    def submit(self, spec: TrialSpec) -> None:
        """Have one trial evaluated, at once or as soon as a worker is free."""

    @abstractmethod
    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        """Wait for the next trial that ends, of those submitted and not returned yet (at least one)."""

    def evaluate(self, spec: TrialSpec, progress: Progress) -> TrialResult:
        """Evaluate one trial while nothing else is under way."""
        self.submit(spec)
        return self.finished(progress)[1]

    @abstractmethod
    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """Call a method that only some oracles have, or ``"package.module:function"`` with the oracle as its first
        argument; arguments and answer are JSON values."""

    @abstractmethod
    def close(self) -> None:
        """Release workers and oracle; it may be called twice."""


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
    """Calls the oracle directly, one trial after the other: for cheap oracles, tests and debuggers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._waiting: deque[TrialSpec] = deque()

    def describe(self) -> Mapping[str, Any]:
        return self._oracle.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        return run_profile(self._oracle, progress)

    def submit(self, spec: TrialSpec) -> None:
        self._waiting.append(spec)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        spec, start = self._waiting.popleft(), time.monotonic()
        try:
            return spec, self._oracle.evaluate(spec, progress)
        except Exception as error:
            if not is_result(error):
                raise
            return spec, failure_of(error, 0, time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return oracle_method(self._oracle, method)(**kwargs, progress=progress)

    def close(self) -> None:
        self._oracle.close()
