"""What driver and worker tell each other: JSON both ways, so that a message is data and nothing else."""

import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation
from qra_bo.trials import TrialResult, TrialSpec, TrialState, peaks_from_json, peaks_to_json
from qra_bo.utils import errors
from qra_bo.utils.errors import ConfigError, OracleError, QRABOError, UserError, is_out_of_memory


@dataclass(frozen=True)
class ProfileResult:
    """A measured profile and what it cost: training tokens, forward-only tokens, seconds."""

    profile: SensitivityProfile
    training_tokens: int
    forward_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields of the journal's profile event."""
        p = self.profile
        return {"source": p.source, "units": list(p.units), "formats": list(p.formats), "quantization_sensitivity": p.quantization_sensitivity.tolist(),
                "quantization_kl": p.quantization_kl.tolist(), "rank_sensitivity": None if p.rank_sensitivity is None else p.rank_sensitivity.tolist(),
                "quantization_se": None if p.quantization_se is None else p.quantization_se.tolist(), "base_loss": p.base_loss,
                "training_tokens": self.training_tokens, "forward_tokens": self.forward_tokens,
                "seconds": self.seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ProfileResult":
        """Inverse of ``to_json``, exact to the last bit."""
        gain, se = (None if data.get(key) is None else np.array(data[key], dtype=np.float64)
                    for key in ("rank_sensitivity", "quantization_se"))
        profile = SensitivityProfile(
            tuple(data["units"]), tuple(data["formats"]), np.array(data["quantization_sensitivity"], dtype=np.float64),
            np.array(data["quantization_kl"], dtype=np.float64), gain, float(data["base_loss"]), str(data["source"]), se)
        return cls(profile, int(data["training_tokens"]), int(data["forward_tokens"]), float(data["seconds"]))


def run_profile(oracle: Oracle, progress: Progress) -> ProfileResult:
    """Profile, with the cost that the oracle leaves in ``profile_cost``; one that leaves none trains nothing."""
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


def spec_to_json(request: TrialSpec) -> dict[str, Any]:
    return {**request.allocation.to_json(), "steps": request.steps, "schedule_steps": request.schedule_steps,
            "train_seed": request.train_seed, "split": request.split, "lr_scale": request.lr_scale,
            "init": request.init, "codes": request.codes}


def spec_from_json(data: Mapping[str, Any]) -> TrialSpec:
    return TrialSpec(Allocation.from_json(data), int(data["steps"]), int(data["schedule_steps"]),
                             int(data["train_seed"]), str(data["split"]), float(data["lr_scale"]),
                             data["init"], data["codes"])


def result_to_json(m: TrialResult) -> dict[str, Any]:
    return {"state": m.state.value, "loss": m.loss, "loss_se": m.loss_se, "curve": [list(p) for p in m.curve],
            "new_steps": m.new_steps, "training_tokens": m.training_tokens, "forward_tokens": m.forward_tokens,
            "measured_bytes": m.measured_bytes, "seconds": m.seconds, "switch_seconds": m.switch_seconds,
            "message": m.message, "peaks": peaks_to_json(m.peaks)}


def result_from_json(data: Mapping[str, Any]) -> TrialResult:
    return TrialResult(TrialState(data["state"]), data["loss"], data["loss_se"],
                       tuple((int(s), float(v)) for s, v in data["curve"]), data["new_steps"],
                       data["training_tokens"], data["forward_tokens"], data["measured_bytes"], data["seconds"],
                       data["switch_seconds"], data["message"], peaks_from_json(data["peaks"]))


def failure(state: TrialState, message: str, new_steps: int, seconds: float) -> TrialResult:
    """A result without a loss."""
    return TrialResult(state, None, None, (), new_steps, 0, 0, None, seconds, 0.0, message)


def is_result(error: BaseException) -> bool:
    """Whether an exception of ``evaluate`` is a result; bugs and what the user must mend end the run instead."""
    return isinstance(error, Exception) and not isinstance(error, (UserError, OracleError))


def failure_of(error: BaseException, new_steps: int, seconds: float) -> TrialResult:
    """The result that an exception of ``evaluate`` stands for."""
    state = TrialState.OOM if is_out_of_memory(error) else TrialState.FAILED
    first = (str(error).splitlines() or [""])[0]
    return failure(state, f"{type(error).__name__}: {first}", new_steps, seconds)


def error_to_json(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error),
            "problems": list(error.problems) if isinstance(error, ConfigError) else None}


def error_from_json(data: Mapping[str, Any], trace: str) -> QRABOError:
    """The error of another process as this one would have raised it; what is not ours becomes an ``OracleError``."""
    if data["problems"] is not None:
        return ConfigError(data["problems"])
    kind = getattr(errors, data["type"], None)
    if isinstance(kind, type) and issubclass(kind, UserError):
        error: QRABOError = kind.__new__(kind)
        error.args = (data["message"],)
        return error
    return OracleError(f"{data['type']}: {data['message']}\n{trace}")
