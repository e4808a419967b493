"""Search methods: the contract (``SearchProblem``, ``Searcher``), the searchers, and ``make_searcher``.

A searcher of one's own is a class ``Class(problem, **options)`` with ``ask`` and ``tell``, named by ``_target_`` in a
YAML of ``conf/method``. The searchers load when they are first used: some need torch.
"""

from qra_bo.searchers.base import Recommending, Searcher, SearchProblem, SelfChecking, make_searcher
from qra_bo.utils.lazy import lazy_names

_HOMES = {"EvolutionarySearch": "evolution.searcher", "RandomSearch": "evolution.searcher",
          "StructuredSearch": "structured.searcher", "TrustRegionBO": "trust_region", "TwoStages": "two_stages"}

__all__ = ["Recommending", "SearchProblem", "Searcher", "SelfChecking", "make_searcher", *_HOMES]
__getattr__ = lazy_names(__name__, _HOMES)
