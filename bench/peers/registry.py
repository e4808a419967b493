"""Peers as search methods by name, beside those of the project. Those that need an extra say so when they are made."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.methods import method_target
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.make import make_searcher

CONF = Path(__file__).parent / "conf" / "method"
PEERS = sorted(path.stem for path in CONF.glob("*.yaml"))
"""Name of every peer."""


def player_target(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a peer, or else of a search method of the project; ``options`` may be complete."""
    if "_target_" in options:
        return dict(options)
    return method_target(name, options, CONF) if name in PEERS else method_target(name, options)


def make_player(name: str, problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """Construct the peer, or else the search method of the project, called ``name``."""
    return make_searcher(player_target(name, options), replace(problem, max_full_trials=equivalents))
