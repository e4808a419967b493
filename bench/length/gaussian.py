"""BoTorch's Gaussian processes of learning curves, with the signature of ``extrapolation``'s models."""

import warnings

import numpy as np
import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskMultiFidelityGP
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.latent_kronecker_gp import LatentKroneckerGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from bench.length.curves import Curves
from bench.length.extrapolation import features
from qra_bo.space import FloatArray

MOST_ITERATIONS = 40
"""Of a fit's optimiser: enough in all that were looked at, and a bound on the time."""


def latent_kronecker(curves: Curves, seen: int) -> FloatArray:
    """``LatentKroneckerGP``: one kernel over allocations times one over the logarithm of the steps, gaps left out."""
    x, t = _inputs(curves)
    known = torch.as_tensor(np.isfinite(curves.losses))
    y, level, scale = _standardised(curves.losses)
    # Its posterior mean stays in standardised units (botorch 0.18), so that we standardise ourselves.
    model = LatentKroneckerGP(x, t, torch.where(known, y, torch.nan), outcome_transform=None)
    if not _fit(model):
        return np.full(len(x), np.nan)
    with torch.no_grad():
        mean = model.posterior(x, t[-1:]).mean
    return np.asarray(mean.reshape(len(x)).numpy() * scale + level)


def multi_fidelity(curves: Curves, seen: int) -> FloatArray:
    """``SingleTaskMultiFidelityGP``: the logarithm of the steps is its fidelity, 1 at the end."""
    x, t = _inputs(curves)
    y, level, scale = _standardised(curves.losses)
    row, column = torch.as_tensor(np.isfinite(curves.losses)).nonzero(as_tuple=True)
    data = torch.cat([x[row], t[column]], dim=1)
    model = SingleTaskMultiFidelityGP(data, y[row, column][:, None], data_fidelities=[x.shape[1]],
                                      outcome_transform=None)
    # With more than two fidelities its kernel (1 + s t)^p is a covariance for whole p alone, and fits stop at others.
    fidelity = model.covar_module.base_kernel.kernels[0]
    fidelity.power = torch.ones_like(fidelity.power)
    fidelity.raw_power.requires_grad_(False)
    if not _fit(model):
        return np.full(len(x), np.nan)
    with torch.no_grad():
        mean = model.posterior(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)).mean
    return np.asarray(mean[:, 0].numpy() * scale + level)


def _inputs(curves: Curves) -> tuple[Tensor, Tensor]:
    """Return features that vary, ``n x d``, and the logarithm of the steps, ``S x 1``, both scaled to [0, 1]."""
    x = features(curves)[:, :-1]  # the square of the rate is the kernel's to find
    x = x[:, np.ptp(x, axis=0) > 0]
    x = (x - x.min(axis=0)) / np.ptp(x, axis=0)
    t = np.log(np.array(curves.steps, dtype=np.float64))
    return torch.as_tensor(x), torch.as_tensor((t - t[0]) / (t[-1] - t[0]))[:, None]


def _standardised(losses: FloatArray) -> tuple[Tensor, float, float]:
    """Return losses less their mean and over their deviation, unknown ones NaN, with mean and deviation."""
    level, scale = float(np.nanmean(losses)), float(np.nanstd(losses))
    return torch.as_tensor((losses - level) / scale), level, scale


def _fit(model: GPyTorchModel) -> bool:
    """Fit the hyperparameters from their defaults and report whether it succeeded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iteration limits and jitter: the scores judge the fit
        try:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), max_attempts=1,
                             optimizer_kwargs={"options": {"maxiter": MOST_ITERATIONS}})
        except ModelFittingError:
            return False
    model.eval()
    return True
