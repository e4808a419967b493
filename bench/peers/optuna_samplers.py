"""Optuna's samplers over ladder positions (its integers have no unequal steps)."""

import importlib.util
import warnings
from typing import Any

import numpy as np

from bench.peers.base import Peer
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import IntArray
from qra_bo.utils.errors import MissingExtraError


class _Optuna(Peer):
    """Suggestions are asked of a study; what was evaluated is added to it as a finished trial.

    Args:
        problem: What is searched.

    Raises:
        MissingExtraError: If Optuna is not installed.
    """

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        if importlib.util.find_spec("optuna") is None:
            raise MissingExtraError("optuna", "peers", f"the peer {self.name}")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._distributions = {f"x{i}": optuna.distributions.IntDistribution(0, int(top))
                               for i, top in enumerate(self._tops)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(sampler=self._sampler(optuna))

    def _sampler(self, optuna: Any) -> Any:
        raise NotImplementedError

    def _suggest(self) -> IntArray:
        from optuna.trial import TrialState

        trial = self._study.ask(self._distributions)
        row = np.array([trial.params[name] for name in self._distributions], dtype=np.int64)
        self._study.tell(trial, state=TrialState.FAIL)  # its repaired self is added once it was evaluated
        return row

    def _learn(self, row: IntArray, loss: float | None) -> None:
        import optuna

        if loss is not None:
            params = {name: int(v) for name, v in zip(self._distributions, row, strict=True)}
            self._study.add_trial(optuna.trial.create_trial(params=params, distributions=self._distributions,
                                                            value=loss))


class Tpe(_Optuna):
    """The tree-structured Parzen estimator with Optuna's defaults."""

    name = "tpe"

    def _sampler(self, optuna: Any) -> Any:
        return optuna.samplers.TPESampler(seed=self._seed, n_startup_trials=self._n_initial)


class GpSampler(_Optuna):
    """Optuna's Gaussian process with its defaults, told that losses are noisy."""

    name = "gp_sampler"

    def _sampler(self, optuna: Any) -> Any:
        return optuna.samplers.GPSampler(seed=self._seed, n_startup_trials=self._n_initial,
                                         deterministic_objective=False)
