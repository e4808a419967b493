"""Search methods by name. Factories import what they need when they are called: some need torch."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from qra_bo.searchers.base import Searcher, SearchProblem, SelfChecking
from qra_bo.searchers.priors import prior_file
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.registry import Registry

Factory = Callable[[SearchProblem, Mapping[str, Any], float], Searcher]
"""``(problem, options, full-trial equivalents of the run)``: the last for methods that divide them."""

METHODS: Registry[Factory] = Registry("method")
DEFAULT_METHOD = "structured"
EVOLUTION_SHARE = 0.6
"""Of a run's full-trial equivalents, what the published algorithm's first stage may spend by default."""
WIDE = 8
"""Edits within which QR-Adaptor's second stage looks: it knows no trust region."""


def make_searcher(name: str, problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The search method called ``name``; ``"default"`` is the one that the project recommends.

    Raises:
        ConfigError: If the name or an option is unknown; the message lists the known ones.
    """
    return METHODS[name](problem, options, equivalents)


def with_learned(options: Mapping[str, Any], prior: str | None) -> dict[str, Any]:
    """A method's options with the prior of ``surrogate.prior``, where one is given."""
    return {**options, **({} if prior is None else {"prior": prior})}


def prior_sha256(prior: str | None) -> str | None:
    """What the file of ``surrogate.prior`` holds, as a hash; ``None`` where none is given.

    Raises:
        ConfigError: If it can't be read.
    """
    if prior is None:
        return None
    try:
        return hashlib.sha256(prior_file(prior).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"surrogate.prior: {prior} can't be read ({error.strerror}); give a file that python -m "
                          "qra_bo.prior wrote") from error


@METHODS.register("structured")
def make_structured(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The additive surrogate over sensitivities, with proposals by knapsacks."""
    from qra_bo.searchers.structured.prior_designs import prior_share
    from qra_bo.searchers.structured.searcher import StructuredOptions, StructuredSearch

    chosen = dataclass_options(StructuredOptions, "structured", options)
    if chosen.n_prior is None:
        chosen = replace(chosen, n_prior=prior_share(equivalents))
    return StructuredSearch(problem, chosen)


METHODS.add("default", METHODS[DEFAULT_METHOD])


@METHODS.register("trust_region")
def make_trust_region(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The published second stage alone."""
    from qra_bo.searchers.trust_region.searcher import TrustRegionBO

    return TrustRegionBO(problem, **keyword_options(TrustRegionBO, "trust_region", options))


@METHODS.register("evolution")
def make_evolution(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The published first stage alone."""
    from qra_bo.searchers.evolution.searcher import EvolutionarySearch

    return EvolutionarySearch(problem, **keyword_options(EvolutionarySearch, "evolution", options))


@METHODS.register("random")
def make_random(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """Random allocations near the budget."""
    from qra_bo.searchers.baselines import RandomSearch

    return RandomSearch(problem, **keyword_options(RandomSearch, "random", options))


@METHODS.register("sequential")
def make_sequential(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """Bits first, ranks after."""
    from qra_bo.searchers.baselines import SequentialSearch

    return SequentialSearch(problem, **keyword_options(SequentialSearch, "sequential", options))


@METHODS.register("hill_climb")
def make_hill_climb(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The best neighbour of the best."""
    from qra_bo.searchers.baselines import HillClimb

    return HillClimb(problem, **keyword_options(HillClimb, "hill_climb", options))


@METHODS.register("autoqra")
def make_autoqra(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The published algorithm: options ``evolution`` and ``trust_region`` are those of its stages, ``evolution_share``
    is what the first may spend of the run's full-trial equivalents."""
    _refuse_unknown("autoqra", options, ("evolution", "trust_region", "evolution_share"))
    first = make_evolution(problem, options.get("evolution", {}), equivalents)
    second = make_trust_region(problem, options.get("trust_region", {}), equivalents)
    return TwoStages("autoqra", first, second, problem, _evolution_share(options) * equivalents)


def _evolution_share(options: Mapping[str, Any]) -> float:
    share = options.get("evolution_share", EVOLUTION_SHARE)
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ConfigError(f"method.params.evolution_share must lie in [0, 1], got {share!r}")
    return float(share)


@METHODS.register("qr_adaptor")
def make_qr_adaptor(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """QR-Adaptor (arXiv 2505.03802): the genetic search at one fidelity from a start by importance, then Bayesian
    optimisation of the loss over a wide neighbourhood of the best. Options as of ``autoqra``."""
    _refuse_unknown("qr_adaptor", options, ("evolution", "trust_region", "evolution_share"))
    single = replace(problem, low_steps=None)
    wide = {"variant": "loss", "radius": WIDE, "largest_radius": WIDE, **options.get("trust_region", {})}
    first = make_evolution(single, options.get("evolution", {}), equivalents)
    second = make_trust_region(single, wide, equivalents)
    return TwoStages("qr_adaptor", first, second, single, _evolution_share(options) * equivalents)


class TwoStages:
    """One searcher until its share is spent or it has nothing left, then a second that was told all the while.

    Args:
        name: Of the whole.
        first: The first stage.
        second: The second stage; it is told of every high-fidelity evaluation.
        problem: What is searched.
        equivalents: High-fidelity equivalents that the first may spend: new steps over the steps of one such.
    """

    def __init__(self, name: str, first: Searcher, second: Searcher, problem: SearchProblem,
                 equivalents: float) -> None:
        self._name, self._first, self._second = name, first, second
        self._left = equivalents * problem.high_steps
        self._steps = {Fidelity.HIGH: problem.high_steps, Fidelity.LOW: problem.low_steps or problem.high_steps}
        self._awaited: set[tuple[str, Fidelity]] = set()
        self._first_is_done = False

    @property
    def name(self) -> str:
        return self._name

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` proposals of the stage whose turn it is: the second's once the first has asked for its share.

        None while a first stage that has some left waits for what it asked, or where the second wants what the first
        is waiting for.
        """
        if not self._first_is_done:
            has_some = self._left > sum(self._steps[fidelity] for _, fidelity in self._awaited)
            proposals = self._first.ask(n) if has_some else []
            self._awaited.update((p.allocation.fingerprint, p.fidelity) for p in proposals)
            if proposals or (has_some and self._awaited):
                return proposals
            self._first_is_done = not self._awaited
        return [p for p in self._second.ask(n) if (p.allocation.fingerprint, p.fidelity) not in self._awaited]

    def surrogate_check(self) -> Mapping[str, Any] | None:
        """That of the second stage, where it has one."""
        return self._second.surrogate_check() if isinstance(self._second, SelfChecking) else None

    def tell(self, evaluations: Sequence[Trial]) -> None:
        """Both stages learn of everything; the second of high fidelity only."""
        for e in evaluations:
            key = (e.allocation.fingerprint, e.fidelity)
            if key in self._awaited:
                self._awaited.remove(key)
                charged_in_full = not e.ok and e.result.training_tokens > 0  # it can't say how far it got
                self._left -= e.result.new_steps or (self._steps[e.fidelity] if charged_in_full else 0)
        self._first.tell(evaluations)
        self._second.tell([e for e in evaluations if e.fidelity is Fidelity.HIGH])


def keyword_options(cls: type, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as keyword arguments of ``cls``, JSON values only.

    Raises:
        ConfigError: If one is unknown.
    """
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.name not in ("problem", "make_model")]
    _refuse_unknown(method, options, known)
    return dict(options)


def dataclass_options(cls: type, method: str, options: Mapping[str, Any]) -> Any:
    """Options as an instance of the frozen dataclass ``cls``, nested dataclasses from nested mappings.

    Raises:
        ConfigError: If one is unknown.
    """
    defaults = cls()
    _refuse_unknown(method, options, [f.name for f in fields(cls)])
    values: dict[str, Any] = {}
    for key, value in options.items():
        inner = getattr(defaults, key)
        if is_dataclass(inner) and isinstance(value, Mapping):
            values[key] = dataclass_options(type(inner), f"{method}.{key}", value)
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _refuse_unknown(method: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    names: Registry[None] = Registry("parameter")
    for name in known:
        names.add(name, None)
    problems = [f"method.params.{key}: the method {method!r} has no such parameter; known: "
                f"{', '.join(names.nearest(key)) or 'none'}" for key in options if key not in names]
    if problems:
        raise ConfigError(problems)
