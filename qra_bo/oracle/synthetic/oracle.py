"""An oracle with a planted optimum: instant, for any model's shapes; its results are labelled ``synthetic``."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import TRAINING, Progress
from qra_bo.oracle.simulated import StepsDone, named_normal
from qra_bo.oracle.synthetic.landscape import FLOOR, TASK_HALF_RANK, TOTAL_TASK, Landscape, phi
from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space import SearchSpace
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import OracleError

_SPEED = 5.0
_SPEED_SPREAD = 0.15
_TEST_OFFSET = 0.03
_LONGER_SCHEDULE = 0.06
_LR_CURVATURE = 0.03


class SyntheticOracle:
    """A stand-in for fine-tuning: planted loss, learning curve, noise by training seed, imperfect profile.

    Args:
        space: Units and ladders; allocations off the ladders (references) are evaluated too.
        seed: Seed of the landscape.
        noise: Standard deviation of a candidate's loss over training seeds (nats); the level that all candidates
            share moves four times as much with the seed.
        high_steps: Optimiser steps of a high-fidelity trial, the schedule for which losses are planted.
        tokens_per_step: Training tokens that a step is counted as.
        eval_tokens: Forward tokens that one look at held-out text is counted as.
        calibration_tokens: Forward tokens that one pass over calibration text is counted as; ``None``: as a look.
        record_at: Steps after which the loss is recorded; every eighth of ``high_steps`` by default.
        severity: Relative sensitivity of the units, ``L``, or ``None`` to draw it.
        checkpoints: Folder that remembers how far each training got, so that a promotion is charged its additional
            steps after a restart too; ``None`` remembers within this process.

    Raises:
        SpaceError: If ``severity`` has the wrong shape or is not positive.
    """

    kind = "synthetic"

    def __init__(self, space: SearchSpace, seed: int, *, noise: float = 0.005, high_steps: int = 24,
                 tokens_per_step: int = 256, eval_tokens: int = 4096, calibration_tokens: int | None = None,
                 record_at: tuple[int, ...] | None = None, severity: FloatArray | None = None,
                 checkpoints: Path | None = None) -> None:
        self.landscape = Landscape(space, seed, severity)
        self._space, self._seed, self._noise, self._high_steps = space, seed, noise, high_steps
        self._tokens_per_step, self._eval_tokens = tokens_per_step, eval_tokens
        self.calibration_tokens = eval_tokens if calibration_tokens is None else calibration_tokens
        eighth = max(1, high_steps // 8)
        self._record_at = tuple(range(eighth, high_steps + 1, eighth)) if record_at is None else record_at
        self._done = StepsDone(checkpoints)
        self.profile_cost: dict[str, float] = {}

    def describe(self) -> Mapping[str, Any]:
        """Return provenance; equal for equal synthetic oracles."""
        settings = {"seed": self._seed, "noise": self._noise, "high_steps": self._high_steps}
        facts = {**settings, "units": [u.name for u in self._space.units],
                 "quantization_sensitivity": np.round(self.landscape.quantization_sensitivity, 12).tolist()}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        return {"device": "cpu", "dtype": "float64", "threads": 1, "data_sha256": digest, "synthetic": settings}

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Return sensitivities with a multiplicative error, as measured one unit at a time before any training."""
        space, rng = self._space, np.random.default_rng(np.random.SeedSequence([self._seed, 2]))
        n, n_formats, largest = space.n_units, len(space.formats), space.ranks.values[-1]
        error = rng.lognormal(0.0, 0.3, (n, 1)) * rng.lognormal(0.0, 0.1, (n, n_formats))
        rise = phi(self.landscape.quantization_sensitivity) * error
        kl = rise * rng.lognormal(-0.1, 0.05, rise.shape)
        ranks = np.arange(1, largest + 1, dtype=np.float64)
        gain = (self.landscape.task * rng.lognormal(0.0, 0.3, n))[:, None] * (ranks / (ranks + TASK_HALF_RANK))
        self.profile_cost = {"training_tokens": self._tokens_per_step,
                             "forward_tokens": (n * n_formats + 1) * self.calibration_tokens, "seconds": 0.0}
        progress("profile", n, n)
        return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), rise, kl,
                                  gain, FLOOR + TOTAL_TASK, f"synthetic landscape of seed {self._seed}")

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """Return one point of the planted learning curve.

        Raises:
            OracleError: If the allocation is of another number of units, or the steps are out of range.
            ConfigError: If a format is unknown.
        """
        start = time.monotonic()
        allocation, steps = request.allocation, request.steps
        if len(allocation) != self._space.n_units or not 0 < steps <= request.schedule_steps:
            raise OracleError(f"expected {self._space.n_units} units and 1 to {request.schedule_steps} steps; got "
                              f"{len(allocation)} units and {steps} steps")
        curve = self._curve(request)
        first = self._done.start(request)
        offset = 0.0 if request.split != "test" else \
            _TEST_OFFSET + self._noise * self._normal("test", allocation.fingerprint)
        shown = [s for s in self._record_at if s < steps]
        losses = [(s, curve(s)) for s in shown] + [(steps, curve(steps) + offset)]
        progress(TRAINING, steps, steps)
        looks = sum(s > first for s in shown) + 1
        return TrialResult(TrialState.OK, losses[-1][1], 2.0 * self._noise, tuple(losses), steps - first,
                           (steps - first) * self._tokens_per_step, looks * self._eval_tokens, None,
                           time.monotonic() - start)

    def close(self) -> None:
        """Do nothing: no device is held."""

    def _curve(self, request: TrialSpec) -> Callable[[int], float]:
        """Return the loss by step: exponential, and exactly the planted loss at the schedule's end."""
        allocation, schedule = request.allocation, request.schedule_steps
        index = self._space.format_index
        formats = [self._space.formats[index[f]] if f in index else parse_format(f) for f in allocation.formats]
        before, after = self.landscape.trained(allocation, formats)
        after -= _LONGER_SCHEDULE * math.log2(schedule / self._high_steps)
        after += _LR_CURVATURE * math.log2(request.lr_scale) ** 2
        level = 4.0 * self._noise * self._normal("level", str(request.train_seed))
        own = self._noise * self._normal("candidate", str(request.train_seed), allocation.fingerprint)
        # Large ranks learn faster at first; further differences of speed between allocations are drawn.
        rank = max(float(np.mean(allocation.ranks)), 0.5)
        drawn = self._normal("speed", allocation.fingerprint)
        speed = _SPEED * (rank / 8.0) ** 0.1 * math.exp(_SPEED_SPREAD * drawn)

        def loss(step: int) -> float:
            way = math.expm1(-speed * step / schedule) / math.expm1(-speed)
            return before + (after - before) * way + (level + own)

        return loss

    def _normal(self, *words: str) -> float:
        return named_normal(str(self._seed), *words)
