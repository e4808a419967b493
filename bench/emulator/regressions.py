"""Two regressions for emulators: bagged boosted trees, and an ensemble of small networks over the set of units."""

import numpy as np
import torch
from sklearn.ensemble import GradientBoostingRegressor
from torch import Tensor, nn

from bench.emulator.features import Describer, Warp
from qra_bo.space import Allocation, FloatArray

TREES, DEPTH, SHRINKAGE, BAGS = 250, 3, 0.05, 8
ROWS_A_TREE, FEATURES_A_SPLIT, LEAST_LEAF = 0.6, 0.3, 3
MEMBERS, STEPS, LEARNING_RATE, DECAY = 6, 400, 0.02, 1e-3
HIDDEN, CODE = 24, 8
WEIGHT_PENALTY = 0.02


class BoostedTrees:
    """Trees for squared error on warped losses, over features of the whole and of every unit.

    Args:
        describer: Source of the features.
        allocations: ``n``.
        targets: ``n x S`` losses, NaN where not recorded.
        seed: Seed of the bags.
    """

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
                    n_estimators=TREES, max_depth=DEPTH, learning_rate=SHRINKAGE, subsample=ROWS_A_TREE,
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


class SetNetworks:
    """An ensemble: one network encodes every unit, another the weighted sum of the codes; all fidelities at once.

    Units differ by their sensitivities and by a weight of their own, which is drawn towards 1. Members of the ensemble
    differ in initialisation and in their bag of rows. Arguments are those of ``BoostedTrees``.
    """

    def __init__(self, describer: Describer, allocations: tuple[Allocation, ...], targets: FloatArray,
                 seed: int) -> None:
        self._describer = describer
        self._warps = [Warp.to(column[np.isfinite(column)]) for column in targets.T]
        features = describer.units(allocations)
        self._mean = features.mean(axis=(0, 1))
        self._scale = np.maximum(features.std(axis=(0, 1)), 1e-9)
        x = self._scaled(features)
        z = torch.from_numpy(np.stack([w.forward(c) for w, c in zip(self._warps, targets.T, strict=True)], axis=1))
        self._members = [_fitted(x, z, np.random.default_rng(words))
                         for words in np.random.SeedSequence(seed).spawn(MEMBERS)]

    def predict(self, allocations: tuple[Allocation, ...]) -> FloatArray:
        """Return losses after every recorded number of steps, ``n x S``."""
        x = self._scaled(self._describer.units(allocations))
        with torch.no_grad():
            z = torch.stack([member(x) for member in self._members]).mean(dim=0).numpy()
        return np.stack([w.inverse(column) for w, column in zip(self._warps, z.T, strict=True)], axis=1)

    def _scaled(self, features: FloatArray) -> Tensor:
        return torch.from_numpy((features - self._mean) / self._scale)


class _Member(nn.Module):
    """Set network: ``n x L x m`` to ``n x S``."""

    def __init__(self, n_units: int, n_features: int, n_targets: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = _linear(n_features, HIDDEN, generator), _linear(HIDDEN, CODE, generator)
        self.third, self.last = _linear(CODE, HIDDEN, generator), _linear(HIDDEN, n_targets, generator)
        self.direct = _linear(CODE, n_targets, generator)
        self.log_weight = nn.Parameter(torch.zeros(n_units, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        codes = self.second(nn.functional.gelu(self.first(x)))
        pooled = torch.einsum("nlc,l->nc", codes, torch.exp(self.log_weight)) / x.shape[1]
        out: Tensor = self.last(nn.functional.gelu(self.third(pooled))) + self.direct(pooled)
        return out


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float64)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.copy_(torch.randn(n_out, n_in, generator=generator, dtype=torch.float64) / n_in**0.5)
        layer.bias.zero_()
    return layer


def _fitted(x: Tensor, z: Tensor, rng: np.random.Generator) -> _Member:
    """Fit one member on a bag of the rows (``n x L x m`` to ``n x S``), by AdamW under a cosine."""
    member = _Member(x.shape[1], x.shape[2], z.shape[1], torch.Generator().manual_seed(int(rng.integers(2**62))))
    counts = torch.from_numpy(rng.multinomial(len(x), np.full(len(x), 1 / len(x))).astype(np.float64))
    used = counts > 0
    x, z, weight = x[used], z[used], counts[used, None] * torch.isfinite(z[used])
    goal = torch.nan_to_num(z)
    others = [p for name, p in member.named_parameters() if name != "log_weight"]
    optimizer = torch.optim.AdamW([{"params": others, "weight_decay": DECAY},
                                   {"params": [member.log_weight], "weight_decay": 0.0}], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        fit = (weight * (member(x) - goal).square()).sum() / weight.sum()
        loss = fit + WEIGHT_PENALTY * member.log_weight.square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return member.eval()
