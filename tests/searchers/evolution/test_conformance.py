"""Evolution and random search as searchers."""

from qra_bo.searchers.evolution.searcher import EvolutionarySearch, RandomSearch
from tests.conformance.searcher import SearcherSuite


class TestEvolution(SearcherSuite):
    make = staticmethod(lambda problem: EvolutionarySearch(problem, population=6, generations=6, promote=3))


class TestRandom(SearcherSuite):
    make = staticmethod(RandomSearch)
