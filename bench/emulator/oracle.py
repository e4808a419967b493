"""The oracle over a table of real trials, through an emulator fitted on it."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.emulator.emulator import Emulator
from bench.emulator.table import PROFILE_BATCH, ROWS, Table, folder_of, load_facts, load_table
from qra_bo.config import RunConfig
from qra_bo.oracle.protocol import TRAINING, Progress
from qra_bo.oracle.synthetic import StepsDone, named_normal
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, FloatArray, SearchSpace
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ConfigError, ContractError


class EmulatorOracle:
    """Emulated losses of real fine-tuning, with the noise over training seeds that repeats show.

    Outside the table's domain a trial fails with the reason, and a searcher sees a point without a loss. The losses are
    those after the steps of the table's trials, and nothing is fine-tuned at the end of a run.

    Args:
        emulator: Emulator fitted on a table.
        space: Space of the run: the table's units, with formats and ranks among the table's.
        sha256: Hash of the table's rows.
        noise: Standard deviation of every loss (nats); ``None``: estimated from the table's repeats.
        checkpoints: Folder of ``StepsDone``, or ``None``.

    Raises:
        ConfigError: If the run is of other units, formats or ranks than the table.
    """

    def __init__(self, emulator: Emulator, space: SearchSpace, sha256: str, *, noise: float | None = None,
                 checkpoints: Path | None = None) -> None:
        self.emulator, self.table = emulator, emulator.table
        _check(self.table, space)
        self._space, self._noise, self._sha256 = space, noise, sha256
        self._checkpoints, self._done = checkpoints, StepsDone(checkpoints)
        self._known: dict[Allocation, FloatArray] = {}
        cost = self.table.provenance.get(PROFILE_BATCH, {})
        self.profile_cost = {key: cost.get(key, 0) for key in ("training_tokens", "forward_tokens")}

    def describe(self) -> Mapping[str, Any]:
        """Return provenance: the table, the emulator, and the noise of real training."""
        noise = self.emulator.noise
        return {"device": "cpu", "dtype": "float64", "threads": 1, "data_sha256": self._sha256,
                "emulator": {"task": self.table.facts.task, "family": self.emulator.family,
                             "rows": len(self.table.rows), "allocations": len(self.emulator.data.allocations),
                              "noise": list(noise.deviations), "level": noise.level}}

    def profile(self, progress: Progress) -> SensitivityProfile:
        """Return the table's sensitivities, of the run's formats."""
        whole, names = self.table.profile, tuple(f.name for f in self._space.formats)
        columns, se = [whole.formats.index(name) for name in names], whole.quantization_se
        return replace(whole, formats=names, quantization_kl=whole.quantization_kl[:, columns],
                       quantization_sensitivity=whole.quantization_sensitivity[:, columns],
                       quantization_se=None if se is None else se[:, columns])

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        """Return the emulated curve up to the requested steps, with one look at held-out text counted.

        Outside the table's reach the result is a failure.

        Raises:
            ContractError: If the steps are not among those that the table records, or the schedule is another.
        """
        start, facts, steps = time.monotonic(), self.table.facts, self.emulator.steps
        if request.schedule_steps != facts.steps or request.steps not in steps:
            raise ContractError(f"the table of {facts.task} records the losses after {list(steps)} steps of a schedule "
                                f"of {facts.steps}; got {request.steps} of {request.schedule_steps}")
        refused = self.emulator.refusal(request.allocation)
        if refused is not None:
            return TrialResult(TrialState.FAILED, None, None, (), 0, 0, 0, None, time.monotonic() - start, 0.0,
                               f"outside the domain of the table: {refused}")
        losses = self.losses_of(request.allocation) + self.emulator.rate_penalty(self._factor(request))
        curve = tuple((step, float(loss) + self._noise_of(request, step, float(loss)))
                      for step, loss in zip(steps, losses, strict=True) if step <= request.steps)
        first = self._done.start(request)
        progress(TRAINING, request.steps, request.steps)
        per_step = facts.step_tokens
        return TrialResult(TrialState.OK, curve[-1][1], None, curve, request.steps - first,
                           (request.steps - first) * per_step, facts.eval_tokens, None, time.monotonic() - start)

    def begin(self) -> None:
        """Forget how far training got in this process: another search begins, which shares nothing."""
        self._done = StepsDone(self._checkpoints)

    def close(self) -> None:
        """Do nothing: no device is held."""

    def losses_of(self, allocation: Allocation) -> FloatArray:
        """Return the loss without noise after each of the emulator's steps, ``S``."""
        if allocation not in self._known:
            self._known[allocation] = self.emulator.losses((allocation,))[0]
        return self._known[allocation]

    def _factor(self, request: TrialSpec) -> float:
        """Return a trial's learning rate as a factor on the one that the table's factors refer to."""
        return float(f"{request.learning_rate / self.table.facts.learning_rate:.12g}")  # without the error of rounding

    def _noise_of(self, request: TrialSpec, step: int, loss: float) -> float:
        """Draw the training seed's level and the noise of one look, by name; early looks correlate with the last."""
        noise, seed = self.emulator.noise, str(request.train_seed)
        own = float(noise.at(np.array([loss]))[0]) if self._noise is None else self._noise
        level = noise.level if self._noise is None else 0.0
        rate = f"{self._factor(request):g}"

        def normal(what: str, *more: str) -> float:
            return named_normal(what, seed, rate, *more, request.allocation.fingerprint)

        looked = last = normal("loss", str(self.emulator.steps[-1]))
        look = self.emulator.steps.index(step)
        if look < len(noise.early):
            ratio, shared = noise.early[look]
            looked = ratio * (shared * last + np.sqrt(1.0 - shared**2) * normal("loss", str(step)))
        drawn = level * named_normal("level", seed) + own * looked
        if request.split == "test":
            drawn += own * normal("test")
        return float(drawn)


def load_oracle(path: Path, family: str, space: SearchSpace, *, noise: float | None = None,
                checkpoints: Path | None = None) -> EmulatorOracle:
    """Return the oracle over a table, named by its folder or its ``evaluations.csv``.

    Raises:
        DataError: If the table can't be read or holds too little.
        ConfigError: If there is no such emulator, or the run is of other units, formats or ranks than the table.
    """
    rows, files = folder_of(path) / ROWS, sorted(folder_of(path).glob("*"))
    emulator = _fitted(path, family, tuple((file.name, file.stat().st_mtime_ns) for file in files))
    sha256 = hashlib.sha256(rows.read_bytes() if rows.exists() else b"").hexdigest()
    return EmulatorOracle(emulator, space, sha256, noise=noise, checkpoints=checkpoints)


@lru_cache(maxsize=1)  # for the runs of a sweep, which share a process
def _fitted(path: Path, family: str, files: tuple[tuple[str, int], ...]) -> Emulator:  # files: of the cache
    return Emulator(load_table(path), family)


def oracle_of_run(table: str | None, emulator: str, noise: float | None, config: RunConfig, space: SearchSpace,
                  folder: Path) -> EmulatorOracle:
    """Return the oracle of a run: the ``_target_`` of ``bench/conf/oracle/emulator.yaml``.

    Raises:
        ConfigError, DataError: If the table can't answer the run's trials.
    """
    if table is None:
        raise ConfigError("oracle.table must name the folder of a table of real trials, such as bench/data/plays; got "
                          "null")
    path = Path(table).expanduser()
    facts = load_facts(folder_of(path))
    problems = []
    if config.embedding_bits != 16:
        problems.append(f"embeddings must be 16, as in the base of the table's trials; got {config.embedding_bits}")
    if config.fidelity.high != facts.steps:
        problems.append(f"fidelity.high must be {facts.steps}, the steps of every trial of the table {path}; got "
                        f"{config.fidelity.high}")
    if config.fidelity.low not in (None, *facts.record_at):
        problems.append(f"fidelity.low must be null or one of {', '.join(map(str, facts.record_at))}, the steps whose "
                        f"loss the table {path} records; got {config.fidelity.low}")
    if problems:
        raise ConfigError(problems)
    return load_oracle(path, emulator, space, noise=noise, checkpoints=folder / "checkpoints")


def _check(table: Table, space: SearchSpace) -> None:
    facts, problems = table.facts, []
    if tuple(u.name for u in space.units) != facts.units:
        problems.append(f"oracle.table: the table of {facts.task} is of {facts.model} with {len(facts.units)} units "
                        f"({facts.granularity}), the run has {space.n_units} other ones; use the model and "
                        "granularity of the table")
    missing = [f.name for f in space.formats if f.name not in facts.formats]
    if missing:
        problems.append(f"oracle.table: the table of {facts.task} has no row with the formats {missing}; choose bits "
                        f"among those of {list(facts.formats)}")
    outside = [r for r in space.ranks if not min(facts.ranks) <= r <= max(facts.ranks)]
    if outside:
        problems.append(f"oracle.table: the table of {facts.task} has no row with the ranks {outside}; it goes from "
                        f"{min(facts.ranks)} to {max(facts.ranks)}")
    if problems:
        raise ConfigError(problems)
