"""SMAC3's facade for hyperparameters (a random forest and expected improvement) over ladder positions."""

import importlib.util
import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.base import Peer
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import IntArray
from qra_bo.utils.errors import MissingExtraError

MOST_TRIALS = 100_000
"""More than any search asks for: what ends a search is its effort."""


class Smac3(Peer):
    """SMAC's defaults but for the first design, which is that of the other peers.

    It walks over sets, so that the same seed gives the same proposals only under the same ``PYTHONHASHSEED``;
    ``make bench-search`` fixes that.

    Args:
        problem: What is searched.

    Raises:
        MissingExtraError: If SMAC is not installed.
    """

    name = "smac"

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        if importlib.util.find_spec("smac") is None:
            raise MissingExtraError("smac", "peers", f"the peer {self.name}")
        folder = Path(tempfile.mkdtemp(prefix="qra_bo-smac-"))  # SMAC writes its scenario down
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._facade = self._made(folder)

    def _made(self, folder: Path) -> Any:
        from ConfigSpace import ConfigurationSpace, UniformIntegerHyperparameter
        from smac import HyperparameterOptimizationFacade, Scenario

        self._names = [f"x{i:04d}" for i, top in enumerate(self._tops) if top > 0]
        self._free = np.flatnonzero(self._tops > 0)
        space = ConfigurationSpace(seed=self._seed)
        space.add([UniformIntegerHyperparameter(name, 0, int(self._tops[i]))
                   for name, i in zip(self._names, self._free, strict=True)])
        scenario = Scenario(space, name="search", output_directory=folder, deterministic=True, n_trials=MOST_TRIALS,
                            seed=self._seed)
        design = HyperparameterOptimizationFacade.get_initial_design(scenario, n_configs=0)
        return HyperparameterOptimizationFacade(scenario, None, initial_design=design, logging_level=False,
                                                overwrite=True)

    def _suggest(self) -> IntArray:
        from smac.runhistory import StatusType, TrialValue

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = self._facade.ask()
            row = np.zeros(len(self._tops), dtype=np.int64)
            row[self._free] = [info.config[name] for name in self._names]
            if not self._problem.costs.feasible(row[None, :], self._problem.budget_bytes)[0]:
                worst = float(self._known[1].max())  # an infinite cost would end as NaN in SMAC's logarithm
                self._facade.tell(info, TrialValue(cost=worst, status=StatusType.CRASHED), save=False)
        return row

    def _learn(self, row: IntArray, loss: float | None) -> None:
        from ConfigSpace import Configuration
        from smac.runhistory import StatusType, TrialInfo, TrialValue

        if loss is None:
            return
        values = {name: int(row[i]) for name, i in zip(self._names, self._free, strict=True)}
        config = Configuration(self._facade.scenario.configspace, values=values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._facade.tell(TrialInfo(config, seed=self._trial_seed), TrialValue(loss, status=StatusType.SUCCESS),
                              save=False)

    @property
    def _trial_seed(self) -> int:
        """The one seed under which SMAC keeps deterministic trials."""
        return 0
