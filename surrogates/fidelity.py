"""Eq. 7: a small network that predicts the high-fidelity loss from the low-fidelity one and other features."""

import copy
import itertools

import torch
from torch import Tensor, nn

from surrogates.errors import SurrogateError, check_shape

HIDDEN = (64, 32)
"""Widths of the two GELU layers."""
RATE, WEIGHT_DECAY = 1e-2, 1e-3
"""Step of Adam, and its L2 penalty."""
EPOCHS, PATIENCE = 400, 40
"""Most passes over the data (full batch), and passes without a better held-out loss after which training stops."""
HOLDOUT = 0.2
"""Share of the data held out for that."""


class FidelityModel:
    """A 2-layer GELU network with Huber loss and early stopping; inputs and target are standardised within.

    Raises ``SurrogateError`` if shapes disagree, a value is not finite, or there are fewer than 5 rows.

    Args:
        features: ``n x d`` float64: low-fidelity loss, memory, coverage sums, histograms.
        target: ``n`` float64: high-fidelity loss.
        seed: Seed of initialisation and hold-out split; no global generator is touched.
    """

    def __init__(self, features: Tensor, target: Tensor, seed: int) -> None:
        check_shape("features", features, (None, None))
        check_shape("target", target, (features.shape[0],))
        if features.shape[0] < 5 or not torch.isfinite(features).all() or not torch.isfinite(target).all():
            raise SurrogateError("the promotion model needs at least 5 finite rows that were evaluated at both "
                                 f"fidelities; got {features.shape[0]}")
        self._shift, self._scale = features.mean(dim=0), _spread(features)
        self._target_shift, self._target_scale = target.mean(), _spread(target[:, None])[0]
        rng = torch.Generator().manual_seed(seed)
        self._network = self._build(features.shape[1], rng)
        self._train((features - self._shift) / self._scale, (target - self._target_shift) / self._target_scale, rng)

    def predict(self, features: Tensor) -> Tensor:
        """Return the predicted high-fidelity loss of ``n x d`` rows, ``n``."""
        check_shape("features", features, (None, self._shift.shape[0]))
        with torch.no_grad():
            scaled: Tensor = self._network((features - self._shift) / self._scale)[:, 0]
        return scaled * self._target_scale + self._target_shift

    def _build(self, n_inputs: int, generator: torch.Generator) -> nn.Sequential:
        widths = (n_inputs, *HIDDEN, 1)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            # Built without drawing from the global generator, then filled from ours.
            layer = nn.Linear(fan_in, fan_out, dtype=torch.float64, device="meta").to_empty(device="cpu")
            bound = fan_in**-0.5
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            layers += [layer, nn.GELU()]
        return nn.Sequential(*layers[:-1])

    def _train(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        order = torch.randperm(len(x), generator=generator)
        n_held = max(1, round(HOLDOUT * len(x)))
        held, used = order[:n_held], order[n_held:]
        optimizer = torch.optim.Adam(self._network.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
        huber = nn.HuberLoss()
        best, stale = float("inf"), 0
        state = copy.deepcopy(self._network.state_dict())
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            huber(self._network(x[used])[:, 0], y[used]).backward()
            optimizer.step()
            with torch.no_grad():
                loss = float(huber(self._network(x[held])[:, 0], y[held]))
            if loss < best:
                best, stale, state = loss, 0, copy.deepcopy(self._network.state_dict())
            else:
                stale += 1
            if stale >= PATIENCE:
                break
        self._network.load_state_dict(state)


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation of every column (``d``), 1 where a column is constant."""
    sd = values.std(dim=0)
    return torch.where(sd > 1e-12, sd, torch.ones_like(sd))
