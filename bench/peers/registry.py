"""Peers as search methods by name, beside those of the project. Those that need an extra say so when they are made."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.methods import METHODS, Factory, keyword_options

PEERS = {"uniform": ("bench.peers.simple", "UniformSearch"),
         "sequential_bits": ("bench.peers.simple", "SequentialBits"),
         "nsga2": ("bench.peers.nsga2", "Nsga2"),
         "tpe": ("bench.peers.optuna_samplers", "Tpe"),
         "gp_sampler": ("bench.peers.optuna_samplers", "GpSampler"),
         "turbo": ("bench.peers.turbo_tutorial", "TurboTutorial"),
         "smac": ("bench.peers.smac3", "Smac3")}
"""Module and class of every peer."""


def _factory(name: str, module: str, cls_name: str) -> Factory:
    def make(problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
        cls = getattr(import_module(module), cls_name)
        made: Searcher = cls(problem, **keyword_options(cls, name, options))
        return made

    return make


FACTORIES = {name: _factory(name, *where) for name, where in PEERS.items()}


def make_player(name: str, problem: SearchProblem, options: Mapping[str, Any], equivalents: float) -> Searcher:
    """The peer, or else the search method of the project, called ``name``."""
    factory = FACTORIES[name] if name in FACTORIES else METHODS[name]
    return factory(problem, options, equivalents)


def name_peers() -> None:
    """Make the peers known as search methods to this process, as a program that runs them does once."""
    for name, factory in FACTORIES.items():
        METHODS.add(name, factory)
