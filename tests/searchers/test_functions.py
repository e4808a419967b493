"""Expected improvement against closed forms, quadrature and BoTorch."""

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from scipy.integrate import quad
from scipy.stats import norm

from qra_bo.searchers.trust_region.functions import gp_log_ei, log_ei_term, log_expected_improvement


@pytest.mark.parametrize(("mean", "sd", "best"), [(1.0, 0.5, 1.2), (1.0, 0.5, 0.4), (0.0, 2.0, 0.0), (3.0, 0.3, 2.0)])
def test_equals_the_integral(mean: float, sd: float, best: float) -> None:
    integral, _ = quad(lambda y: (best - y) * norm.pdf(y, mean, sd), mean - 12 * sd, best)
    value = log_expected_improvement(np.array([mean]), np.array([sd]), best)[0]
    assert value == pytest.approx(math.log(integral), rel=1e-8)


def test_tail_follows_its_asymptote_without_breaks() -> None:
    u = torch.tensor([-5.9999, -6.0001, -20.0, -1e3, -1e4, -1e6], dtype=torch.float64)
    value = log_ei_term(u)
    asymptote = -0.5 * u.square() - 0.5 * math.log(2 * math.pi) - 2 * torch.log(-u)
    assert bool(torch.isfinite(value).all())
    # The next term of the expansion is -3 / u^2.
    torch.testing.assert_close(value[2:], asymptote[2:] - 3.0 / u[2:].square(), rtol=1e-9, atol=2e-4)
    assert abs(float(value[0] - value[1]) - 2e-4 * 6.3) < 1e-4


def test_gp_values_are_botorchs_in_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, generator=generator, dtype=torch.float64)
    y = x.sum(dim=1, keepdim=True)
    model = SingleTaskGP(x, (y - y.mean()) / y.std()).eval()
    candidates = torch.rand(1500, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        want = LogExpectedImprovement(model, best_f=0.5, maximize=False)(candidates[:, None, :])
    torch.testing.assert_close(gp_log_ei(model, candidates, 0.5, maximize=False), want)
    with torch.no_grad():
        posterior = model.posterior(candidates[:, None, :])
        mean, sd = posterior.mean[:, 0, 0].numpy(), posterior.variance[:, 0, 0].sqrt().numpy()
    np.testing.assert_allclose(log_expected_improvement(mean, sd, 0.5), want.numpy(), rtol=1e-5, atol=1e-6)
