"""The first emulator: gradient-boosted regression trees, bagged."""

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from qra_bo.oracle.emulator.features import Describer
from qra_bo.oracle.emulator.warp import Warp
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation

TREES, DEPTH, RATE, BAGS = 250, 3, 0.05, 8
ROWS_A_TREE, FEATURES_A_SPLIT, LEAST_LEAF = 0.6, 0.3, 3


class BoostedTrees:
    """Trees for squared error on warped losses, over features of the whole and of every unit.

    Args:
        describer: Source of the features.
        allocations: ``n``.
        targets: ``n x S`` losses, NaN where not recorded.
        seed: Seed of the bags.
    """

    name = "boosted"

    def __init__(self, describer: Describer, allocations: tuple[Allocation, ...], targets: FloatArray,
                 seed: int) -> None:
        self._describer = describer
        features = self._features(allocations)
        self._parts = []
        for column, words in zip(targets.T, np.random.SeedSequence(seed).spawn(targets.shape[1]), strict=True):
            known = np.isfinite(column)
            warp = Warp.to(column[known])
            x, z = features[known], warp.forward(column[known])
            rng = np.random.default_rng(words)
            bags = []
            for _ in range(BAGS):
                chosen = rng.integers(0, len(z), len(z))
                model = GradientBoostingRegressor(
                    n_estimators=TREES, max_depth=DEPTH, learning_rate=RATE, subsample=ROWS_A_TREE,
                    max_features=FEATURES_A_SPLIT, min_samples_leaf=LEAST_LEAF, random_state=int(rng.integers(2**31)))
                bags.append(model.fit(x[chosen], z[chosen]))
            self._parts.append((warp, bags))

    def predict(self, allocations: tuple[Allocation, ...]) -> FloatArray:
        """Return losses after every recorded number of steps, ``n x S``."""
        features = self._features(allocations)
        columns = [warp.inverse(np.mean([model.predict(features) for model in bags], axis=0))
                   for warp, bags in self._parts]
        return np.stack(columns, axis=1)

    def _features(self, allocations: tuple[Allocation, ...]) -> FloatArray:
        units = self._describer.units(allocations)
        return np.hstack([self._describer.whole(allocations), units[..., 1], units[..., 3]])
