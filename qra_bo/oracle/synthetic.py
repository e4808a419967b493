"""The oracle with a planted optimum (``oracle=synthetic``): instant, for any model's shapes."""

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import TRAINING, Progress
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, FloatArray, SearchSpace, StorageFormat
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ContractError
from qra_bo.utils.files import replace_text

log = logging.getLogger(__name__)
FLOOR = 4.0
"""Loss of a decoder that has learned the whole task without quantisation (nats per token); this and the following are
orders of magnitude as measured on a decoder of 135 M parameters."""
TOTAL_4_BIT = 0.32
"""Sensitivity of all units together to a 4-bit format of blocks of 64 (nats)."""
TOTAL_TASK = 0.68
"""Loss that training can remove at most (nats)."""
FACTOR_PER_BIT = 5.0
INTERACTION = 1.0
KNEE = 0.3
TASK_HALF_RANK = 0.2
_SPEED = 5.0
_SPEED_SPREAD = 0.15
_TEST_OFFSET = 0.03
_SEQUENCES, _SEQUENCE_TOKENS = 64, 64
_LONGER_SCHEDULE = 0.06
_LR_CURVATURE = 0.03


class Landscape:
    """The planted loss and its parts.

        loss = floor + phi(sum_u s[u, f_u] (1 - share_u r_u / (r_u + half_u))) + sum_u task_u H / (r_u + H)

    The first sum is the quantisation sensitivity ``s`` that adapters leave: they recover a share of it, so that a rank
    gains more where bits are low. ``phi(x) = x + K x^2``, linear beyond ``KNEE``, makes the loss of the whole larger
    than the sum of its parts. The second sum is the part of the task that small ranks can't learn.

    Attributes:
        quantization_sensitivity: Sensitivity of every unit to every format, ``L x F``.

    Args:
        space: Units and ladders.
        seed: Seed of the sensitivities: log-normal, larger for large units and at both ends of the stack.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space, self._seed = space, seed
        n = space.n_units
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
        size = space.unit_numel / space.unit_numel.mean()
        depth = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
        ends = 1.0 + 2.0 * np.exp(-np.minimum(depth, 1.0 - depth) / 0.05)  # 1 in the middle of the stack, up to 3
        drawn = rng.lognormal(0.0, 0.8, n) * size * ends
        self._severity = TOTAL_4_BIT * drawn / drawn.sum()
        task = rng.lognormal(0.0, 0.8, n) * size
        self.task = TOTAL_TASK * task / task.sum()
        self._half = rng.lognormal(np.log(6.0), 0.4, n)
        self._share = rng.uniform(0.5, 0.8, n)
        self.quantization_sensitivity = np.stack([self.format_sensitivity(f) for f in space.formats], axis=1)

    def format_sensitivity(self, fmt: StorageFormat) -> FloatArray:
        """Return the sensitivity of every unit to one format, on the space's ladder or not, ``L`` (nats)."""
        if fmt.bits >= 16:
            return np.zeros(self.space.n_units)
        key = int.from_bytes(fmt.name.encode(), "little")
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 1, key]))
        own = rng.lognormal(0.0, 0.3, self.space.n_units)
        coarseness = (fmt.block / 64) ** 0.25 if fmt.block else 1.0
        found: FloatArray = self._severity * FACTOR_PER_BIT ** (4.0 - fmt.bits) * coarseness * own
        return found

    def kept(self, ranks: FloatArray) -> FloatArray:
        """Return the share of a unit's sensitivity that ``1 or L x R`` ranks leave, ``L x R``."""
        return 1.0 - self._share[:, None] * ranks / (ranks + self._half[:, None])

    def missed(self, ranks: FloatArray) -> FloatArray:
        """Return the part of the task that ``1 or L x R`` ranks of each unit can't learn, ``L x R`` (nats)."""
        lost: FloatArray = self.task[:, None] * TASK_HALF_RANK / (ranks + TASK_HALF_RANK)
        return lost

    def trained(self, allocation: Allocation, formats: list[StorageFormat]) -> tuple[float, float]:
        """Return the loss before and at the end of training; formats and ranks may be off the ladders (references)."""
        planted, index = self.quantization_sensitivity, self.space.format_index
        parts = np.array([planted[u, index[f.name]] if f.name in index else self.format_sensitivity(f)[u]
                          for u, f in enumerate(formats)])
        ranks = np.array(allocation.ranks, dtype=np.float64)[:, None]
        after = phi(np.array([(parts * self.kept(ranks)[:, 0]).sum()]))[0] + self.missed(ranks).sum()
        return FLOOR + TOTAL_TASK + float(phi(np.array([parts.sum()]))[0]), FLOOR + float(after)


def phi(total: FloatArray) -> FloatArray:
    """Return the loss of the whole from the sum of its parts, both ``n`` (nats): convex, so more than the sum."""
    bent = np.minimum(total, KNEE)
    return total + INTERACTION * (bent**2 + 2.0 * KNEE * (total - bent))


def named_normal(*words: str) -> float:
    """Return a standard normal number that is a function of these words, the same in every process."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest[:7], "big") + 0.5) / 2**56)


class StepsDone:
    """Steps done of every training, in memory or as one small file each in ``folder``.

    With files a promotion is charged its additional steps after a restart too.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, tuple[int, int]] = {}

    def start(self, request: TrialSpec) -> int:
        """Return the steps done before this trial, and note its own as done; a repeated trial counts in full again."""
        name, folder = request.training, self._folder
        if folder is not None and name not in self._known and (folder / name).is_file():
            noted = (folder / name).read_text(encoding="ascii").split()
            self._known[name] = int(noted[0]), int(noted[1])
        before, target = self._known.get(name, (0, 0))
        if target != request.steps:
            before = target if target < request.steps else 0
            self._known[name] = before, request.steps
            try:
                if folder is not None:
                    folder.mkdir(exist_ok=True)  # never its parent: a run whose folder vanished must notice
                    replace_text(folder / name, f"{before} {request.steps}")
            except OSError as error:
                log.warning("the steps done can't be noted in %s (%s)", folder, error.strerror)
        return before


class SyntheticOracle:
    """A stand-in for fine-tuning: planted loss, learning curve, noise by training seed, imperfect profile.

    Allocations off the ladders of the space (references) are evaluated too.

    Args:
        learning_rate: Rate at which the losses are planted; any other one costs.
        noise: Standard deviation of a candidate's loss over training seeds, and over test texts of 64 sequences, whose
            losses are recorded (nats); the level that all candidates share moves four times as much with the seed.
        high_steps: Optimiser steps of a full trial, the schedule for which losses are planted.
        tokens_per_step: Training tokens of a step.
        eval_tokens: Forward tokens of one look at held-out text.
        test_times: A look at the test split has so many times 64 sequences, and times these tokens.
        calibration_tokens: Forward tokens of one pass over calibration text.
        checkpoints: Folder of ``StepsDone``; ``None`` remembers within this process.
    """

    def __init__(self, space: SearchSpace, seed: int, *, learning_rate: float = 2e-3, noise: float = 0.005,
                 high_steps: int = 24, tokens_per_step: int = 256, eval_tokens: int = 4096, test_times: int = 1,
                 calibration_tokens: int = 4096, checkpoints: Path | None = None) -> None:
        self.landscape = Landscape(space, seed)
        self._space, self._seed, self._noise, self._high_steps = space, seed, noise, high_steps
        self._learning_rate = learning_rate
        self._tokens_per_step, self._eval_tokens, self._test_times = tokens_per_step, eval_tokens, test_times
        self.calibration_tokens, self._done = calibration_tokens, StepsDone(checkpoints)
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
        n, n_formats, largest = space.n_units, len(space.formats), space.ranks[-1]
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
        """Return one point of the planted learning curve. Raises ``ContractError`` if the allocation is of another
        number of units, or the steps are out of range, and ``ConfigError`` if a format is unknown."""
        start = time.monotonic()
        allocation, steps = request.allocation, request.steps
        if len(allocation) != self._space.n_units or not 0 < steps <= request.schedule_steps:
            raise ContractError(f"expected {self._space.n_units} units and 1 to {request.schedule_steps} steps; got "
                                f"{len(allocation)} units and {steps} steps")
        planted = self._planted(request)
        first = self._done.start(request)
        times = self._test_times if request.split == "test" else 0
        text = [self._normal("test", allocation.fingerprint, str(i)) for i in range(_SEQUENCES * times)]
        own = [_TEST_OFFSET + self._noise * math.sqrt(_SEQUENCES) * x for x in text]  # the same for every training seed
        loss = planted + (sum(own) / len(own) if own else 0.0)
        progress(TRAINING, steps, steps)
        return TrialResult(TrialState.OK, loss, 2.0 * self._noise, ((steps, loss),), steps - first,
                           (steps - first) * self._tokens_per_step, max(1, times) * self._eval_tokens, None,
                           time.monotonic() - start, sequence_losses=tuple(
                               ((planted + x) * _SEQUENCE_TOKENS, _SEQUENCE_TOKENS, i) for i, x in enumerate(own)))

    def close(self) -> None:
        """Do nothing: no device is held."""

    def _planted(self, request: TrialSpec) -> float:
        """Return the loss after the steps: exponential, and exactly the planted loss at the schedule's end."""
        allocation, schedule = request.allocation, request.schedule_steps
        index = self._space.format_index
        formats = [self._space.formats[index[f]] if f in index else parse_format(f) for f in allocation.formats]
        before, after = self.landscape.trained(allocation, formats)
        after -= _LONGER_SCHEDULE * math.log2(schedule / self._high_steps)
        after += _LR_CURVATURE * math.log2(request.learning_rate / self._learning_rate) ** 2
        level = 4.0 * self._noise * self._normal("level", str(request.train_seed))
        own = self._noise * self._normal("candidate", str(request.train_seed), allocation.fingerprint)
        # Large ranks learn faster at first; further differences of speed between allocations are drawn.
        rank = max(float(np.mean(allocation.ranks)), 0.5)
        drawn = self._normal("speed", allocation.fingerprint)
        speed = _SPEED * (rank / 8.0) ** 0.1 * math.exp(_SPEED_SPREAD * drawn)
        way = math.expm1(-speed * request.steps / schedule) / math.expm1(-speed)
        return before + (after - before) * way + (level + own)

    def _normal(self, *words: str) -> float:
        return named_normal(str(self._seed), *words)
