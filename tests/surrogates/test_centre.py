"""A prior mean of the structured model's tables: what is left to learn is the deviation from it."""

import numpy as np
import pytest
import torch

from surrogates.errors import SurrogateError
from surrogates.structured import Component, Design, StructuredModel
from tests.surrogates.test_structured import F, L, R, additive, design, random_rows

CENTRE = 0.02 * torch.randn(L, F, R, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def centred(n: int = 12, scale: float = 0.5, shift: float = 0.0) -> StructuredModel:
    rows = random_rows(n, 3)
    plan = Design([Component(c.name, c.features, scale) for c in design().components], CENTRE)
    y = 4.0 + additive(CENTRE, rows) + shift * additive(design().components[0].features[..., 0], rows)
    return StructuredModel(plan, rows, y, residual=0.0, warps=[None])


def test_losses_that_follow_the_prior_mean_are_predicted_everywhere() -> None:
    model, new = centred(scale=1e-3), random_rows(30, 4)
    mean, _ = model.warp.moments(*model.latent(new))
    torch.testing.assert_close(mean, 4.0 + additive(CENTRE, new), atol=2e-4, rtol=0.0)


def test_fractional_ranks_interpolate() -> None:
    plan, low, high = centred().design, random_rows(1).double(), random_rows(1).double()
    low[:, L:], high[:, L:] = 0.0, 1.0
    designs = low, high, 0.75 * low + 0.25 * high
    for a, b, middle in zip(*([plan.centres(rows), *plan.blocks(rows)] for rows in designs), strict=True):
        torch.testing.assert_close(middle, 0.75 * a + 0.25 * b)


def test_deviations_from_the_prior_mean_are_learned() -> None:
    model, new = centred(40, shift=0.01), random_rows(30, 4)
    apart = additive(design().components[0].features[..., 0], new)
    left = model.warp.moments(*model.latent(new))[0] - additive(CENTRE, new) - 4.0
    assert torch.corrcoef(torch.stack([left, apart]))[0, 1] > 0.95


def test_all_views_of_the_posterior_share_the_prior_mean() -> None:
    model, new = centred(shift=0.01), random_rows(20, 4)
    latent = model.latent(new)[0]
    torch.testing.assert_close(model.posterior(new.double()[:, None, :]).mean.reshape(-1), latent)
    for table in (model.mean_table(), model.sample_tables(np.random.default_rng(0), 1, 0.0)[0]):
        gap = latent - additive(table, new)
        torch.testing.assert_close(gap, gap[0].expand_as(gap))  # a constant apart


def test_level_of_the_prior_mean_changes_nothing() -> None:
    rows, y = random_rows(3, 3), 4.0 + torch.tensor([0.0, 0.001, 0.0025], dtype=torch.float64)
    at_zero, at_three = (StructuredModel(Design(design().components, CENTRE + level / L), rows, y)
                         for level in (0.0, 3.0))
    assert at_three.scales == pytest.approx(at_zero.scales, rel=1e-4)
    new = random_rows(20, 4)
    for given, wanted in zip(*(m.warp.moments(*m.latent(new)) for m in (at_three, at_zero)), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-7)
    pending = at_three.condition_on_pending(random_rows(2, 5))  # their mean of the centre is another
    torch.testing.assert_close(pending.latent(new)[0], at_three.latent(new)[0], rtol=1e-4, atol=1e-4)


def test_leave_one_out_equals_refitting() -> None:
    model = centred(shift=0.01)
    mean, sd = model.leave_one_out()
    kept = torch.arange(len(model.y)) != 2
    without = StructuredModel(model.design, model.rows[kept], model.y[kept], like=model)
    found, spread = without.latent(model.rows[2:3])
    torch.testing.assert_close(mean[2:3], found)
    noise = model.scales["noise"]
    torch.testing.assert_close(sd[2:3].square(), spread.square() + noise**2, rtol=1e-5, atol=1e-6)


def test_prior_mean_of_another_shape_is_refused() -> None:
    with pytest.raises(SurrogateError, match="prior mean"):
        Design(design().components, torch.zeros(L, F, R + 1))
