"""An oracle with a planted optimum: instant, for any model's shapes, and labelled ``synthetic`` for ever."""

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import TRAINING, Progress
from qra_bo.oracle.simulated import StepsDone, named_normal
from qra_bo.oracle.synthetic.landscape import FLOOR, TASK_HALF_RANK, TOTAL_TASK, Landscape, Optimum, phi
from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space import CostTable, IntArray, SearchSpace, StorageFormat
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import OracleError

_SPEED = 5.0
_SPEED_SPREAD = 0.15
_TEST_OFFSET = 0.03
_LONGER_SCHEDULE = 0.06
_LR_CURVATURE = 0.03


class SyntheticOracle:
    """Stands in for fine-tuning: a planted loss, a learning curve, noise by training seed, an imperfect profile.

    Args:
        space: Units and ladders; allocations off the ladders (references) are answered too.
        seed: Seed of the landscape.
        noise: Standard deviation of a candidate's loss over training seeds (nats); the level that all candidates
            share moves four times as much with the seed.
        high_steps: Optimiser steps of a high-fidelity evaluation, the schedule for which losses are planted.
        tokens_per_step: Training tokens that a step is counted as.
        eval_tokens: Forward tokens that one look at held-out text is counted as.
        calibration_tokens: Forward tokens that one pass over calibration text is counted as; ``None``: as a look.
        record_at: Steps after which the loss is recorded; every eighth of ``high_steps`` by default.
        severity: Relative damage of the units, ``L``, or ``None`` to draw it.
        checkpoints: Folder that remembers how far each evaluation got, so that a promotion is charged its additional
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
        """What makes two synthetic oracles the same."""
        facts: dict[str, Any] = {"seed": self._seed, "noise": self._noise, "high_steps": self._high_steps,
                                 "units": [u.name for u in self._space.units],
                                 "quantization_sensitivity": np.round(self.landscape.quantization_sensitivity, 12).tolist()}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()
        return {"device": "cpu", "dtype": "float64", "threads": 1, "data_sha256": digest,
                "synthetic": {k: facts[k] for k in ("seed", "noise", "high_steps")}}

    def true_loss(self, rows: IntArray) -> FloatArray:
        """Loss of ``n x 2 L`` index rows after ``high_steps`` on the validation split, without noise, ``n``."""
        return self.landscape.true_loss(rows)

    def optimum(self, costs: CostTable, budget_bytes: int) -> Optimum:
        """The best allocation in the budget, and a proven bound on how much better any other could be.

        Raises:
            BudgetError: If nothing fits.
        """
        return self.landscape.optimum(costs, budget_bytes)

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Sensitivities with a multiplicative error, as measured one unit at a time before any training."""
        space, rng = self._space, np.random.default_rng(np.random.SeedSequence([self._seed, 2]))
        n, n_formats, largest = space.n_units, len(space.formats), space.ranks.values[-1]
        error = rng.lognormal(0.0, 0.3, (n, 1)) * rng.lognormal(0.0, 0.1, (n, n_formats))
        damage = phi(self.landscape.quantization_sensitivity) * error
        kl = damage * rng.lognormal(-0.1, 0.05, damage.shape)
        ranks = np.arange(1, largest + 1, dtype=np.float64)
        gain = (self.landscape.task * rng.lognormal(0.0, 0.3, n))[:, None] * (ranks / (ranks + TASK_HALF_RANK))
        self.profile_cost = {"training_tokens": self._tokens_per_step,
                             "forward_tokens": (n * n_formats + 1) * self.calibration_tokens, "seconds": 0.0}
        progress("profile", n, n)
        return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), damage, kl,
                                  gain, FLOOR + TOTAL_TASK, f"synthetic landscape of seed {self._seed}")

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """One point of the planted learning curve.

        Raises:
            OracleError: If the allocation is of another number of units, or the steps make no sense.
            ConfigError: If a format is unknown.
        """
        start = time.monotonic()
        allocation, steps = request.allocation, request.steps
        if len(allocation) != self._space.n_units or not 0 < steps <= request.schedule_steps:
            raise OracleError(f"expected {self._space.n_units} units and 1 to {request.schedule_steps} steps; got "
                              f"{len(allocation)} units and {steps} steps")
        curve = self._curve(request)
        name = f"{allocation.fingerprint}-{request.schedule_steps}-t{request.train_seed}-lr{request.lr_scale:g}"
        first = self._done.start(name, steps)
        offset = self._split_offset(request)
        shown = [s for s in self._record_at if s < steps]
        losses = [(s, curve(s)) for s in shown] + [(steps, curve(steps) + offset)]
        progress(TRAINING, steps, steps)
        looks = sum(s > first for s in shown) + 1
        return TrialResult(TrialState.OK, losses[-1][1], 2.0 * self._noise, tuple(losses), steps - first,
                           (steps - first) * self._tokens_per_step, looks * self._eval_tokens, None,
                           time.monotonic() - start)

    def close(self) -> None:
        """Nothing is held."""

    def _curve(self, request: TrialSpec) -> "_Curve":
        allocation = request.allocation
        formats = [self._format(name) for name in allocation.formats]
        before, after = self.landscape.trained(allocation, formats)
        after -= _LONGER_SCHEDULE * math.log2(request.schedule_steps / self._high_steps)
        after += _LR_CURVATURE * math.log2(request.lr_scale) ** 2
        level = 4.0 * self._noise * self._normal("level", str(request.train_seed))
        own = self._noise * self._normal("candidate", str(request.train_seed), allocation.fingerprint)
        # Large ranks learn faster at first, and so does one allocation or another for no reason we model.
        rank = max(float(np.mean(allocation.ranks)), 0.5)
        whim = self._normal("speed", allocation.fingerprint)
        speed = _SPEED * (rank / 8.0) ** 0.1 * math.exp(_SPEED_SPREAD * whim)
        return _Curve(before, after, speed, request.schedule_steps, level + own)

    def _split_offset(self, request: TrialSpec) -> float:
        if request.split != "test":
            return 0.0
        return _TEST_OFFSET + self._noise * self._normal("test", request.allocation.fingerprint)

    def _format(self, name: str) -> StorageFormat:
        index = self._space.format_index.get(name)
        return parse_format(name) if index is None else self._space.formats[index]

    def _normal(self, *what: str) -> float:
        """A standard normal number that these words name in every process."""
        return named_normal(str(self._seed), *what)


class _Curve:
    """Loss after a number of steps: exponential from ``before`` to exactly ``after`` at the schedule's end."""

    def __init__(self, before: float, after: float, speed: float, schedule: int, offset: float) -> None:
        self._before, self._after, self._speed, self._schedule = before, after, speed, schedule
        self._offset = offset

    def __call__(self, step: int) -> float:
        way = math.expm1(-self._speed * step / self._schedule) / math.expm1(-self._speed)
        return self._before + (self._after - self._before) * way + self._offset
