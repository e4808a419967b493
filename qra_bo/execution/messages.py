"""Messages between driver and worker: JSON both ways, so that a message is data and nothing else."""

import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialState
from qra_bo.utils import errors
from qra_bo.utils.errors import ConfigError, OracleError, QRABOError, UserError, is_out_of_memory

_ARRAYS: Final = ("quantization_sensitivity", "quantization_kl", "rank_sensitivity", "quantization_se")
"""The last two may be absent."""


@dataclass(frozen=True)
class ProfileResult:
    """A measured profile and its cost: training tokens, forward-only tokens, seconds."""

    profile: SensitivityProfile
    training_tokens: int
    forward_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the journal's profile event."""
        p = self.profile
        arrays = {key: None if getattr(p, key) is None else getattr(p, key).tolist() for key in _ARRAYS}
        return {"source": p.source, "units": list(p.units), "formats": list(p.formats), **arrays,
                "base_loss": p.base_loss, "training_tokens": self.training_tokens,
                "forward_tokens": self.forward_tokens, "seconds": self.seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProfileResult":
        """Inverse of ``to_json``, exact to the last bit."""
        arrays: dict[str, Any] = {key: None if data.get(key) is None else np.array(data[key], dtype=np.float64)
                                  for key in _ARRAYS[2:]}
        arrays |= {key: np.array(data[key], dtype=np.float64) for key in _ARRAYS[:2]}
        profile = SensitivityProfile(units=tuple(data["units"]), formats=tuple(data["formats"]),
                                     base_loss=float(data["base_loss"]), source=str(data["source"]), **arrays)
        return cls(profile, int(data["training_tokens"]), int(data["forward_tokens"]), float(data["seconds"]))


def run_profile(oracle: Oracle, progress: Progress) -> ProfileResult:
    """Profile with the cost that the oracle leaves in ``profile_cost``; an oracle without it trains nothing."""
    start = time.monotonic()
    profile = oracle.profile(progress)
    cost = getattr(oracle, "profile_cost", {})
    return ProfileResult(profile, int(cost.get("training_tokens", 0)), int(cost.get("forward_tokens", 0)),
                         time.monotonic() - start)


def oracle_method(oracle: Oracle, method: str) -> Callable[..., Mapping[str, Any]]:
    """Return a method of the oracle, or ``"package.module:function"`` with the oracle as its first argument.

    The program alone names functions: no name from a file or a configuration comes here.
    """
    if ":" in method:
        return partial(pkgutil.resolve_name(method), oracle)
    found: Callable[..., Mapping[str, Any]] = getattr(oracle, method)
    return found


def failure(state: TrialState, message: str, new_steps: int, seconds: float) -> TrialResult:
    """Return a result without a loss."""
    return TrialResult(state, None, None, (), new_steps, 0, 0, None, seconds, 0.0, message)


def is_result(error: BaseException) -> bool:
    """Return whether an exception of ``evaluate`` is a result; bugs and user errors end the run instead."""
    return isinstance(error, Exception) and not isinstance(error, (UserError, OracleError))


def failure_of(error: BaseException, new_steps: int, seconds: float) -> TrialResult:
    """Return the result that an exception of ``evaluate`` stands for."""
    state = TrialState.OOM if is_out_of_memory(error) else TrialState.FAILED
    first = (str(error).splitlines() or [""])[0]
    return failure(state, f"{type(error).__name__}: {first}", new_steps, seconds)


def error_to_json(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error),
            "problems": list(error.problems) if isinstance(error, ConfigError) else None}


def error_from_json(data: Mapping[str, Any], trace: str) -> QRABOError:
    """Return the error of another process as this one would have raised it; a foreign one becomes an
    ``OracleError``."""
    if data["problems"] is not None:
        return ConfigError(data["problems"])
    kind = getattr(errors, data["type"], None)
    if isinstance(kind, type) and issubclass(kind, UserError):
        error: QRABOError = kind.__new__(kind)
        error.args = (data["message"],)
        return error
    return OracleError(f"{data['type']}: {data['message']}\n{trace}")
