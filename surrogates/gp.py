"""Gaussian processes on scaled designs (the published Stage 2), and kernels over ladder positions."""

import copy
import math
import warnings
from typing import Any

import torch
from botorch.exceptions import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from surrogates.errors import SurrogateError, SurrogateFitError, check_training_data


def matern52(distance: Tensor) -> Tensor:
    """Return the Matern-5/2 correlation of scaled distances: ``(1 + a + a^2 / 3) exp(-a)`` with ``a = sqrt(5) d``."""
    a = math.sqrt(5.0) * distance
    return (1.0 + a + a.square() / 3.0) * torch.exp(-a)


class OrdinalMaternKernel(MaternKernel):  # type: ignore[misc]  # gpytorch is untyped
    """Matern-5/2 over one axis of ladder positions, with one length-scale.

    Inputs (``... x n x 1``) are positions scaled to [0, 1], so that unequal steps of the ladder's values do not
    matter, only their order. The length-scale's prior is log-normal with this median.
    """

    def __init__(self, median: float = 0.5, **kwargs: Any) -> None:
        super().__init__(nu=2.5, lengthscale_prior=LogNormalPrior(math.log(median), 0.75), **kwargs)
        self.initialize(lengthscale=median)


class JointUnitKernel(Kernel):  # type: ignore[misc]  # gpytorch is untyped
    """Additive over units; within a unit formats, ranks and their interplay: ``a k_q + b k_r + c k_q k_r``.

    Inputs are ``... x n x 2 L``: positions of ``L = n_units`` formats, then of ``L`` ranks, each scaled to [0, 1]. The
    three weights (shared by all units, together the prior variance) and two length-scales are learned.
    """

    is_stationary = True

    def __init__(self, n_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_units = n_units
        self.formats = OrdinalMaternKernel()
        self.ranks = OrdinalMaternKernel()
        self.register_parameter("raw_weights", torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)))
        self.register_constraint("raw_weights", Positive())
        self.register_prior("weights_prior", LogNormalPrior(math.log(0.3), 1.0), lambda kernel: kernel.weights,
                            lambda kernel, value: setattr(kernel, "weights", value))
        self.weights = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """Prior variances of formats, ranks and their interplay, summed over units, ``3``."""
        return torch.as_tensor(self.raw_weights_constraint.transform(self.raw_weights))

    @weights.setter
    def weights(self, value: Tensor) -> None:
        self.initialize(raw_weights=self.raw_weights_constraint.inverse_transform(value))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False,
                **params: Any) -> Tensor:
        """Return the covariances: ``... x n x m``, or ``... x n`` with ``diag``."""
        n = self.n_units
        if x1.shape[-1] != 2 * n or last_dim_is_batch:
            raise SurrogateError(f"inputs must have {2 * n} columns for {n} units; got {x1.shape[-1]}")
        k_q = self._by_unit(self.formats, x1[..., :n], x2[..., :n], diag)
        k_r = self._by_unit(self.ranks, x1[..., n:], x2[..., n:], diag)
        weights = self.weights
        return (weights[0] * k_q + weights[1] * k_r + weights[2] * k_q * k_r).mean(dim=-1)

    @staticmethod
    def _by_unit(kernel: OrdinalMaternKernel, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        """Return the correlations of every unit on a trailing axis, ``... x n x m x L`` or ``... x n x L``."""
        difference = x1 - x2 if diag else x1.unsqueeze(-2) - x2.unsqueeze(-3)
        return matern52(difference.abs() / kernel.lengthscale[..., 0, 0])


_START_SCALES = (1.0, 3.0, 0.3)
"""Factors on the initial length-scales, one an attempt: restarts without random numbers."""
_MAX_ITERATIONS = 100


def fit_gp(train_X: Tensor, train_Y: Tensor, *, covar_module: Kernel | None = None) -> SingleTaskGP:
    """Fit a GP by maximum a posteriori; by default Matern-5/2 with length-scale priors scaled by the dimension.

    Args:
        train_X: ``n x d`` float64 in the unit cube.
        train_Y: ``n x 1`` float64, standardised within the model.
        covar_module: Another kernel, e.g. ``JointUnitKernel``.

    Raises:
        SurrogateError: If the data are unfit (see ``check_training_data``) or all targets are equal.
        SurrogateFitError: If the fit fails from each of three starting points.
    """
    check_training_data(train_X, train_Y)
    if train_Y.min() == train_Y.max():
        raise SurrogateError(f"all {train_Y.shape[0]} targets equal {train_Y[0].item():g}: there is nothing to learn")
    covar = covar_module if covar_module is not None else get_covar_module_with_dim_scaled_prior(
        ard_num_dims=train_X.shape[1], use_rbf_kernel=False)
    problems = []
    for scale in _START_SCALES:
        try:
            return _fit_once(train_X, train_Y, copy.deepcopy(covar).double(), scale)
        except (ModelFittingError, RuntimeError) as error:
            problems.append(str(error))
    raise SurrogateFitError(f"the GP could not be fitted to {train_X.shape[0]} points of dimension "
                            f"{train_X.shape[1]} in {len(problems)} attempts: {'; '.join(problems)}")


def _fit_once(train_X: Tensor, train_Y: Tensor, covar: Kernel, scale: float) -> SingleTaskGP:
    """Fit once from length-scales of ``scale`` times their initial values."""
    for module in covar.modules():
        if isinstance(module, Kernel) and module.has_lengthscale:
            module.lengthscale = module.lengthscale.detach() * scale
    # BoTorch's scaling warnings are replaced by our checks; numerical ones end in a failed fit or do no harm.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SingleTaskGP(train_X, train_Y, covar_module=covar, outcome_transform=Standardize(m=1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), max_attempts=1,
                         optimizer_kwargs={"options": {"maxiter": _MAX_ITERATIONS}})
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
