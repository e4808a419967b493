"""The executor contract, what all executors share, and the executor that calls its oracle in this process."""

import json
import pkgutil
import sysconfig
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from qra_bo.oracle.protocol import Oracle, Progress, quiet
from qra_bo.sensitivity.profile import SensitivityProfile, profile_from_json, profile_to_json
from qra_bo.trials import RESERVED, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, UserError, is_out_of_memory

_COST: Final = ("training_tokens", "forward_tokens", "seconds")
NO_RESULT: Final = (UserError, ContractError)
"""Exceptions of ``evaluate`` that end the run; all others are results."""


@dataclass(frozen=True)
class ProfileResult:
    """A measured profile and its cost: training tokens, forward-only tokens, seconds."""

    profile: SensitivityProfile
    training_tokens: int
    forward_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the journal's profile event."""
        return profile_to_json(self.profile) | {name: getattr(self, name) for name in _COST}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProfileResult":
        """Inverse of ``to_json``, exact; raises ``ProfileError``, ``KeyError``, ``TypeError`` or ``ValueError``."""
        cost = int(data["training_tokens"]), int(data["forward_tokens"]), float(data["seconds"])
        fields = {key: value for key, value in data.items() if key not in RESERVED | {*_COST}}
        return cls(profile_from_json({"schema_version": 1} | fields, "the profile event"), *cost)


def describe(oracle: Oracle, progress: Progress) -> Mapping[str, Any]:
    """Return the oracle's provenance. Raises ``ContractError`` if JSON can't hold it."""
    found = oracle.describe()
    try:
        json.dumps({**found}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractError(f"describe must return a dict that JSON can hold ({error}); got {found!r:.99}") from error
    return found


def profile(oracle: Oracle, progress: Progress) -> dict[str, Any]:
    """Measure the oracle's profile and add up its cost; returns a ``ProfileResult`` as JSON.

    Tokens are read from the mapping that the oracle leaves in ``profile_cost``: ``training_tokens`` and
    ``forward_tokens``. An oracle without it trains nothing. Wall seconds. Raises ``ContractError`` if it is no profile.
    """
    start = time.monotonic()
    found, cost = oracle.profile(progress), getattr(oracle, "profile_cost", {})
    if not isinstance(found, SensitivityProfile):
        raise ContractError(f"profile must return a qra_bo.sensitivity.profile.SensitivityProfile; got {found!r:.99}")
    return ProfileResult(found, int(cost.get("training_tokens", 0)), int(cost.get("forward_tokens", 0)),
                         time.monotonic() - start).to_json()


def oracle_method(oracle: Oracle, method: str) -> Callable[..., Mapping[str, Any]]:
    """Return a method of the oracle, or ``"package.module:function"`` with the oracle as its first argument.

    The program alone names functions: no name from a file or a configuration comes here.
    """
    return partial(pkgutil.resolve_name(method), oracle) if ":" in method else getattr(oracle, method)


def failure(state: TrialState, message: str, new_steps: int, seconds: float) -> TrialResult:
    """Return a result without a loss: ``new_steps`` optimiser steps were done, and no tokens are counted."""
    return TrialResult(state, None, None, (), new_steps, 0, 0, None, seconds, 0.0, message)


def failure_of(error: BaseException, new_steps: int, seconds: float) -> TrialResult:
    """Return the result that an exception of ``evaluate`` stands for: ``oom`` if memory ran out, else ``failed``.

    Its message is the exception's type, the first line of its text, and where it was raised, outside of libraries.
    """
    state = TrialState.OOM if is_out_of_memory(error) else TrialState.FAILED
    first = (str(error).splitlines() or [""])[0]
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return failure(state, f"{type(error).__name__}: {first}{place}", new_steps, seconds)


class Executor(ABC):
    """Runs an oracle. A trial that fails gives a ``TrialResult``; any other failure is an error.

    Trials are submitted and come back as they finish, in any order; all other methods wait for their answer, while no
    trial is under way. Signals reach the caller while it waits.
    """

    workers = 1
    """Number of trials under way at once."""
    in_order = False
    """Whether trials are told in the order in which they were submitted, so that no proposal depends on which of the
    workers is faster. A cluster's trials are told as they end: one that is slow would hold up all others."""

    def describe(self) -> Mapping[str, Any]:
        """Return the oracle's provenance, JSON values. Raises ``WorkerError`` if the worker is lost too often."""
        return self.call(f"{__name__}:describe", {}, quiet)

    def profile(self, progress: Progress) -> ProfileResult:
        """Measure the sensitivities of every unit in every format (nats), with their cost.

        Raises ``WorkerError`` as ``describe``, and ``UserError`` or ``ContractError`` if the oracle can't measure them.
        """
        return ProfileResult.from_json(self.call(f"{__name__}:profile", {}, progress))

    @abstractmethod
    def submit(self, spec: TrialSpec) -> None:
        """Have one trial evaluated, at once or as soon as a worker is free."""

    @abstractmethod
    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        """Wait for the next trial that ends, of those submitted and not returned yet (at least one).

        A trial that diverges, runs out of memory or loses its worker is returned without a loss. Raises
        ``WorkerError`` if a worker can't build its oracle, and ``UserError`` or ``ContractError`` if no trial can
        succeed, e.g. because data are missing; the run ends.
        """

    def evaluate(self, spec: TrialSpec, progress: Progress) -> TrialResult:
        """Evaluate one trial while nothing else is under way."""
        self.submit(spec)
        return self.finished(progress)[1]

    @abstractmethod
    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress, workers: int = 1) -> Mapping[str, Any]:
        """Call a method that only some oracles have, or ``"package.module:function"`` with the oracle as its first
        argument; arguments and answer are JSON values. Errors are those of ``profile`` and of the method. Several
        ``workers`` share the call where they are processes of this machine; see ``PoolExecutor``."""

    @abstractmethod
    def close(self) -> None:
        """Release workers and oracle; it may be called twice."""


@dataclass(frozen=True)
class OracleSpec:
    """How a worker builds its oracle: by ``"package.module:callable"`` with keyword arguments, JSON values only."""

    target: str
    kwargs: dict[str, Any] = field(default_factory=dict)


class InProcessExecutor(Executor):
    """Calls the oracle directly, one trial after the other: for cheap oracles, tests and debuggers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._waiting: deque[TrialSpec] = deque()

    def submit(self, spec: TrialSpec) -> None:
        self._waiting.append(spec)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        spec, start = self._waiting.popleft(), time.monotonic()
        try:
            return spec, self._oracle.evaluate(spec, progress)
        except NO_RESULT:
            raise
        except Exception as error:
            return spec, failure_of(error, 0, time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress, workers: int = 1) -> Mapping[str, Any]:
        return oracle_method(self._oracle, method)(**kwargs, progress=progress)

    def close(self) -> None:
        self._oracle.close()
