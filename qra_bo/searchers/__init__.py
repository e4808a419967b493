"""Search methods: the contract (``SearchProblem``, ``Searcher``), the searchers, and ``make_searcher``.

A searcher of one's own is a class ``Class(problem, **options)`` with ``ask`` and ``tell``, named by ``_target_`` in a
YAML of ``conf/method``. The searchers load when they are first used: some need torch.
"""

from importlib import import_module
from typing import Any

from qra_bo.searchers.base import Recommending, Searcher, SearchProblem, SelfChecking

_HOMES = {"EvolutionarySearch": "evolution", "HillClimb": "baselines", "OrdinalProblem": "ordinal",
          "OrdinalSearch": "ordinal", "RandomSearch": "baselines", "SequentialSearch": "baselines",
          "StructuredSearch": "structured", "TrustRegionBO": "trust_region", "TwoStages": "two_stages",
          "make_searcher": "make", "minimise": "ordinal"}

__all__ = ["Recommending", "SearchProblem", "Searcher", "SelfChecking", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
