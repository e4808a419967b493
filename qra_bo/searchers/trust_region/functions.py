"""Eq. 10: the logarithm of expected improvement, over finite sets of candidates."""

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from botorch.utils.probability.utils import log_phi
from torch import Tensor

from qra_bo.sensitivity.profile import FloatArray

_BATCH = 1024


def log_expected_improvement(mean: FloatArray, sd: FloatArray, best: float) -> FloatArray:
    """``log E[max(best - y, 0)]`` of Gaussian ``y``, ``n``: improvement of a value that is minimised.

    With ``u = (best - mean) / sd`` it is ``log sd + log(phi(u) + u Phi(u))``, kept finite far below zero, where
    the second term tends to ``log phi(u) - 2 log|u|``.
    """
    u = torch.from_numpy((best - mean) / sd)
    return (torch.from_numpy(np.log(sd)) + log_ei_term(u)).numpy()


def log_ei_term(u: Tensor) -> Tensor:
    """``log(phi(u) + u Phi(u))``, ``n``, stable in both tails."""
    near = u.clamp_min(-6.0)
    direct = torch.log(log_phi(near).exp() + near * torch.special.ndtr(near))
    far = u.clamp_max(-6.0)
    # Mills ratio from the scaled complementary error function, so that nothing cancels or underflows.
    ratio = torch.special.erfcx(-far / 2**0.5) * (torch.pi / 2)**0.5
    remainder = torch.where(far > -1e3, torch.log1p((far * ratio).clamp(-1.0, 0.0)), -2.0 * torch.log(-far))
    return torch.where(u > -6.0, direct, log_phi(far) + remainder)


def gp_log_ei(model: SingleTaskGP, X: Tensor, best: float, *, maximize: bool) -> Tensor:
    """BoTorch's LogEI of ``n x d`` candidates, ``n``, computed in batches that bound memory."""
    acquisition = LogExpectedImprovement(model, best_f=best, maximize=maximize)
    with torch.no_grad():
        return torch.cat([acquisition(chunk[:, None, :]) for chunk in torch.split(X, _BATCH)])
