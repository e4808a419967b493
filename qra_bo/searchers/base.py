"""The contract between search methods and the engine: ``SearchProblem``, ``Searcher`` and its construction."""

import inspect
import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from hydra.utils import instantiate

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, CostTable, SearchSpace
from qra_bo.trials import Proposal, Trial
from qra_bo.utils.errors import ConfigError, nearest_first


@dataclass(frozen=True)
class SearchProblem:
    """Everything a searcher may know besides finished trials.

    Args:
        costs: Memory of every allocation, in the configured scope.
        budget_bytes: Hard limit on ``costs``.
        profile: Sensitivities of the units of ``space``; its formats are those of ``space``, in order.
        low_steps: Steps of a low-fidelity trial, or ``None`` where no low fidelity is to be used.
        seed: Seed of the searcher's own named generators.
        max_full_trials: Full-trial equivalents that the run may spend; infinity is no limit.
        objective_steps: Steps of the training whose loss trials are told as; ``None``: those of a trial.
        step_tokens: Training tokens of a step; lengths of different trainers are compared in tokens.
    """

    space: SearchSpace
    costs: CostTable
    budget_bytes: int
    profile: SensitivityProfile
    high_steps: int
    low_steps: int | None
    seed: int
    max_full_trials: float = math.inf
    objective_steps: int | None = None
    step_tokens: int = 1

    @property
    def trial_tokens(self) -> int:
        """Training tokens of a full-fidelity trial."""
        return self.high_steps * self.step_tokens

    def fits(self, allocation: Allocation) -> bool:
        """Whether an allocation on the ladders is within the budget."""
        return bool(self.costs.feasible(self.space.encode(allocation)[None, :], self.budget_bytes)[0])

    def rng(self, component: str) -> np.random.Generator:
        """Return the named random stream of one component, independent of every other name's."""
        name = component.encode()
        words = [int.from_bytes(name[i:i + 4].ljust(4, b"\0"), "little") for i in range(0, len(name), 4)]
        return np.random.default_rng(np.random.SeedSequence(entropy=self.seed, spawn_key=tuple(words)))


@runtime_checkable
class Searcher(Protocol):
    """A search method: it proposes trials and learns of them through ``tell`` alone; it never calls an oracle.

    Its class is constructed as ``Class(problem, **options)`` with the options of a configuration (``make_searcher``).
    Its state is a function of the problem (seed included) and the sequence of ``ask`` and ``tell`` calls, so that
    replaying a journal restores it. It never proposes outside the budget or off the ladders, and never the same
    (allocation, fidelity) twice. Trials that it did not ask for (uniform baselines) may arrive at any time.
    """

    @property
    def name(self) -> str:
        """Name in messages, e.g. ``"autoqra"``."""

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` new proposals; fewer or none when the space is exhausted or the method has converged."""

    def tell(self, trials: Sequence[Trial], /) -> None:
        """Learn of finished trials, failed ones included, all at the learning rate of the search."""


@runtime_checkable
class Recommending(Protocol):
    """A searcher that ranks evaluated allocations by its posterior: the least loss seen may have been luck."""

    def recommend(self) -> Sequence[Allocation]:
        """Return allocations on the ladders and within the budget that have a high-fidelity loss, the best first."""


@runtime_checkable
class Forecasting(Protocol):
    """A searcher that knows what its latest proposal may gain."""

    @property
    def chance_of_gain(self) -> float | None:
        """Probability that the latest proposal's loss is below the incumbent's by more than the noise of comparing two
        trials; ``None`` where its surrogate can't say yet."""


@runtime_checkable
class SelfChecking(Protocol):
    """A searcher that measures how well its surrogate predicts held-out observations."""

    def surrogate_check(self) -> Mapping[str, Any] | None:
        """Return every observation as the surrogate predicts it from the others; ``None`` with too few of them.

        Keys: ``observed``, ``predicted`` and ``sd`` (lists of ``n``, in nats), and over these ``n``, ``spearman``,
        ``spearman_good`` (among the better half; both ``None`` where undefined), ``nll`` (nats), ``coverage_50`` and
        ``coverage_90``.
        """


def make_searcher(config: Mapping[str, Any], problem: SearchProblem) -> Searcher:
    """Construct the searcher that ``_target_`` names, with the other keys as keyword arguments.

    ``_target_`` is imported: the configuration must be the user's own, never one read from the folder of a run. Raises
    ``ConfigError`` if a target can't be imported, or an option is unknown or out of its range.
    """
    return cast(Searcher, make_own("method", config, ("name", "ask", "tell"), problem))


def make_own(where: str, config: Mapping[str, Any], members: Sequence[str], /, *args: Any, **given: Any) -> Any:
    """Call what ``_target_`` names with ``args``, ``given`` and the other keys of ``config``, the group ``where``.
    Raises ``ConfigError`` like ``make_searcher``, and if what is made lacks one of ``members``."""
    if problems := list(_target_problems(where, config, ("problem", *given))):
        raise ConfigError(problems)
    made, name = instantiate({**config, "_partial_": True}, _convert_="all"), config["_target_"]
    try:
        inspect.signature(made).bind(*args, **given)
    except TypeError as error:
        raise ConfigError(f"{where}: {name} can't be called with the given options: {error}") from error
    found = made(*args, **given)
    if lacking := [member for member in members if not hasattr(found, member)]:
        raise ConfigError(f"{where}: {name} must have {', '.join(members)}; it lacks {', '.join(lacking)}")
    return found


def _target_problems(where: str, config: Mapping[str, Any], given: Sequence[str] = ("problem",)) -> Iterator[str]:
    """Yield a message for every target that can't be imported and every option, at any depth, that is unknown."""
    try:
        parameters = inspect.signature(pkgutil.resolve_name(config["_target_"])).parameters
    except Exception as error:  # an import may raise anything
        yield f"{where}._target_: {config['_target_']!r} can't be imported: {error}"
        return
    known = [name for name in parameters if name not in given]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in config.items():
        if not key.startswith("_") and key not in known and not takes_any:
            yield f"{where}.{key}: {config['_target_']} has no such parameter; known: " \
                  f"{', '.join(nearest_first(key, known)) or 'none'}"
        elif isinstance(value, Mapping) and "_target_" in value:
            yield from _target_problems(f"{where}.{key}", value)
