"""Gaussian processes on scaled designs (the published Stage 2)."""

import math
import warnings

import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from surrogates.errors import SurrogateError, check_shape


def matern52(distance: Tensor) -> Tensor:
    """Return the Matern-5/2 correlation of scaled distances: ``(1 + a + a^2 / 3) exp(-a)`` with ``a = sqrt(5) d``."""
    a = math.sqrt(5.0) * distance
    return (1.0 + a + a.square() / 3.0) * torch.exp(-a)


_MAX_ITERATIONS = 100


def fit_gp(train_X: Tensor, train_Y: Tensor) -> SingleTaskGP:
    """Fit a Matern-5/2 GP by maximum a posteriori, with length-scale priors scaled by the dimension.

    Args:
        train_X: ``n x d`` float64 in the unit cube.
        train_Y: ``n x 1`` float64, standardised within the model.

    Raises:
        SurrogateError: If shapes disagree, all targets are equal, or the fit fails, from drawn starting points too.
        botorch.exceptions.BotorchError: If values are not numbers.
    """
    check_shape("train_X", train_X, (None, None))
    check_shape("train_Y", train_Y, (len(train_X), 1))
    if train_Y.min() == train_Y.max():
        raise SurrogateError(f"all {train_Y.shape[0]} targets equal {train_Y[0].item():g}: there is nothing to learn")
    covar = get_covar_module_with_dim_scaled_prior(ard_num_dims=train_X.shape[1], use_rbf_kernel=False)
    model = SingleTaskGP(train_X, train_Y, covar_module=covar, outcome_transform=Standardize(m=1))
    with warnings.catch_warnings(), manual_seed(0):  # numerical warnings end in a failed fit or do no harm
        warnings.simplefilter("ignore")
        try:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model),
                             optimizer_kwargs={"options": {"maxiter": _MAX_ITERATIONS}})
        except ModelFittingError as error:
            raise SurrogateError(f"the GP could not be fitted to {train_X.shape[0]} points of dimension "
                                 f"{train_X.shape[1]}: {error}") from error
    return model.eval()


def gp_predict(model: SingleTaskGP, X: Tensor) -> tuple[Tensor, Tensor]:
    """Return posterior mean and standard deviation of the noise-free function at ``n x d`` inputs, each ``n``."""
    with torch.no_grad():
        posterior = model.posterior(X)
        return posterior.mean[:, 0], posterior.variance[:, 0].clamp_min(0.0).sqrt()


def condition_on_pending(model: SingleTaskGP, X: Tensor) -> SingleTaskGP:
    """Return the model with ``m x d`` pending inputs as if each had been observed once at its predicted mean (kriging
    believer): variances fall as one more value with the model's noise lowers them; means and hyperparameters stay."""
    mean, _ = gp_predict(model, X)
    with torch.no_grad():
        conditioned: SingleTaskGP = model.condition_on_observations(X, mean[:, None])
    return conditioned
