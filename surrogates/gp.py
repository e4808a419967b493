"""The Gaussian process of the published Stage 2: Matern-5/2 with noise, on scaled designs."""

import copy
import logging
import warnings

import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.kernels import Kernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from surrogates.checks import check_training_data
from surrogates.errors import SurrogateError, SurrogateFitError

_log = logging.getLogger(__name__)
_START_SCALES = (1.0, 3.0, 0.3)
_MAX_ITERATIONS = 100


def fit_gp(train_X: Tensor, train_Y: Tensor, *, train_Yvar: Tensor | None = None, covar_module: Kernel | None = None,
           max_attempts: int = 3) -> SingleTaskGP:
    """Fit a GP by maximum a posteriori; by default Matern-5/2 with length-scale priors scaled by the dimension.

    Args:
        train_X: ``n x d`` float64 in the unit cube.
        train_Y: ``n x 1`` float64, standardised within the model.
        train_Yvar: ``n x 1`` known noise variances; learned as one homoskedastic variance where ``None``.
        covar_module: Another kernel, e.g. ``JointUnitKernel``.
        max_attempts: Starting points tried.

    Raises:
        SurrogateError: If the data are unfit (see ``check_training_data``) or all targets are equal.
        SurrogateFitError: If every attempt fails.
    """
    report = check_training_data(train_X, train_Y)
    if train_Y.min() == train_Y.max():
        raise SurrogateError(f"all {train_Y.shape[0]} targets equal {train_Y[0].item():g}: there is nothing to learn")
    if report.duplicate_rows:
        _log.debug("repeated inputs: rows %s", report.duplicate_rows)
    covar = covar_module if covar_module is not None else get_covar_module_with_dim_scaled_prior(
        ard_num_dims=train_X.shape[1], use_rbf_kernel=False)
    problems = []
    for attempt in range(max_attempts):
        try:
            return _fit_once(train_X, train_Y, train_Yvar, copy.deepcopy(covar).double(), _START_SCALES[attempt % 3])
        except (ModelFittingError, RuntimeError) as error:
            problems.append(str(error))
    raise SurrogateFitError(f"the GP could not be fitted to {train_X.shape[0]} points of dimension "
                            f"{train_X.shape[1]} in {max_attempts} attempts: {'; '.join(problems)}")


def _fit_once(train_X: Tensor, train_Y: Tensor, train_Yvar: Tensor | None, covar: Kernel,
              scale: float) -> SingleTaskGP:
    """One fit from length-scales of ``scale`` times their initial values: restarts without random numbers."""
    for module in covar.modules():
        if isinstance(module, Kernel) and module.has_lengthscale:
            module.lengthscale = module.lengthscale.detach() * scale
    # BoTorch's scaling warnings are replaced by our checks; numerical ones end in a failed fit or do no harm.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SingleTaskGP(train_X, train_Y, train_Yvar, covar_module=covar, outcome_transform=Standardize(m=1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), max_attempts=1,
                         optimizer_kwargs={"options": {"maxiter": _MAX_ITERATIONS}})
    return model.eval()


def gp_predict(model: SingleTaskGP, X: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of the noise-free function at ``n x d`` inputs, each ``n``."""
    with torch.no_grad():
        posterior = model.posterior(X)
        return posterior.mean[:, 0], posterior.variance[:, 0].clamp_min(0.0).sqrt()


def believe(model: SingleTaskGP, X: Tensor) -> SingleTaskGP:
    """The model conditioned on its own mean at ``m x d`` inputs: their variance vanishes, hyperparameters stay."""
    mean, _ = gp_predict(model, X)
    with torch.no_grad():
        conditioned: SingleTaskGP = model.condition_on_observations(X, mean[:, None])
    return conditioned
