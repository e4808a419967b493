"""TuRBO-1 as in BoTorch's tutorial: a Matern GP with ARD on the unit cube, Thompson samples in a trust region.

The cube's coordinates are ladder positions; candidates are rounded to them and those over the budget are left out. The
tutorial begins with 2 d Sobol points, which exceeds a whole search here: it begins as the other peers do.
"""

import math
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.generation import MaxPosteriorSampling
from botorch.models import SingleTaskGP
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from bench.peers.base import Peer
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import IntArray

CANDIDATES = 2000
"""The least of the tutorial's ``min(5000, max(2000, 200 d))``: a sample over 5000 takes a core ten times as long."""
PERTURBED = 20.0


@dataclass
class TurboState:
    """Side of the trust region and what decides about it, with the tutorial's numbers for a batch of one."""

    dim: int
    length: float = 0.8
    length_min: float = 0.5**7
    length_max: float = 1.6
    failures: int = 0
    successes: int = 0
    success_tolerance: int = 10
    best: float = -math.inf

    @property
    def failure_tolerance(self) -> int:
        """Failures in a row after which the region halves."""
        return max(4, self.dim)

    def update(self, value: float) -> None:
        """Count one more value (to be maximised); resize, and start again where the region has collapsed."""
        improved = value > self.best + 1e-3 * abs(self.best) if math.isfinite(self.best) else True
        self.successes, self.failures = (self.successes + 1, 0) if improved else (0, self.failures + 1)
        if self.successes == self.success_tolerance:
            self.length, self.successes = min(2.0 * self.length, self.length_max), 0
        elif self.failures == self.failure_tolerance:
            self.length, self.failures = self.length / 2.0, 0
        self.best = max(self.best, value)
        if self.length < self.length_min:
            self.length, self.failures, self.successes = 0.8, 0, 0


class TurboTutorial(Peer):
    """See the module's docstring."""

    name = "turbo"

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._state = TurboState(len(self._tops))
        self._steps = np.maximum(self._tops, 1)

    def _learn(self, row: IntArray, loss: float | None) -> None:
        if loss is not None:
            self._state.update(-loss)

    def _suggest(self) -> IntArray:
        rows, losses = self._known
        x = torch.from_numpy(rows / self._steps)
        y = torch.from_numpy(-losses)
        y = (y - y.mean()) / y.std().clamp_min(1e-9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self._rng.integers(2**31)))
            return self._sampled(x, y)

    def _sampled(self, x: Tensor, y: Tensor) -> IntArray:
        model = _fitted(x, y)
        centre = x[y.argmax()]
        lengths = model.covar_module.base_kernel.lengthscale.squeeze().detach()
        weights = lengths / lengths.mean()
        weights = weights / torch.prod(weights.pow(1.0 / len(weights)))
        low = torch.clamp(centre - weights * self._state.length / 2.0, 0.0, 1.0)
        high = torch.clamp(centre + weights * self._state.length / 2.0, 0.0, 1.0)
        dim = len(centre)
        sobol = torch.quasirandom.SobolEngine(dim, scramble=True, seed=int(self._rng.integers(2**31)))
        drawn = low + (high - low) * sobol.draw(CANDIDATES).to(x)
        mask = torch.rand(CANDIDATES, dim, dtype=x.dtype) <= min(PERTURBED / dim, 1.0)
        empty = torch.where(mask.sum(dim=1) == 0)[0]
        mask[empty, torch.randint(0, dim, size=(len(empty),))] = True
        candidates = torch.where(mask, drawn, centre.expand(CANDIDATES, dim))
        rows = np.rint(candidates.numpy() * self._steps).astype(np.int64)
        fits = self._problem.costs.feasible(rows, self._problem.budget_bytes)
        if not fits.any():
            return np.asarray(rows[0])
        rows = np.unique(rows[fits], axis=0)
        with torch.no_grad(), gpytorch.settings.max_cholesky_size(float("inf")):
            chosen = MaxPosteriorSampling(model=model, replacement=False)(torch.from_numpy(rows / self._steps),
                                                                          num_samples=1)
        return np.asarray(np.rint(chosen[0].numpy() * self._steps).astype(np.int64))


def _fitted(x: Tensor, y: Tensor) -> SingleTaskGP:
    """The tutorial's model; where its fit does not converge, with the hyperparameters it starts from."""
    likelihood = GaussianLikelihood(noise_constraint=Interval(1e-8, 1e-3))
    covar = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=x.shape[-1], lengthscale_constraint=Interval(0.005, 4.0)))
    model = SingleTaskGP(x, y.unsqueeze(-1), covar_module=covar, likelihood=likelihood, outcome_transform=None)
    with gpytorch.settings.max_cholesky_size(float("inf")):
        try:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        except ModelFittingError:
            model.train()
        model.eval()
    return model
