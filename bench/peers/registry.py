"""Peers by name, beside the search methods of the project."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.methods import PEERS as CONF
from bench.methods import method_target
from qra_bo.searchers.base import Searcher, SearchProblem, make_searcher

PEERS = sorted(path.stem for path in CONF.glob("*.yaml"))


def make_player(name: str, problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """Construct the peer, or else the search method of the project, called ``name``."""
    return make_searcher(method_target(name, options), replace(problem, max_full_trials=equivalents))
