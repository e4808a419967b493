"""Evolution and random search as searchers."""

from qra_bo.searchers.baselines import RandomSearch
from qra_bo.searchers.evolution.searcher import EvolutionarySearch
from tests.conformance.searcher import SearcherSuite


class TestEvolution(SearcherSuite):
    make = staticmethod(lambda problem: EvolutionarySearch(problem, population=6, generations=6, promote=3))


class TestColdEvolution(SearcherSuite):
    make = staticmethod(lambda problem: EvolutionarySearch(problem, population=4, generations=4, promote=2, warm=False))


class TestRandom(SearcherSuite):
    make = staticmethod(RandomSearch)
