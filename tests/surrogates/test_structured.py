"""The structured model against dense algebra, and what it can learn."""

import math

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.optim import optimize_acqf_discrete
from botorch.sampling import SobolQMCNormalSampler
from scipy.integrate import quad
from scipy.stats import norm

from surrogates.structured import Component, Design, StructuredModel
from surrogates.warp import LogWarp, candidate_warps

L, F, R = 4, 3, 3


def design(seed: int = 0) -> Design:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(L, F, R, 2, generator=generator, dtype=torch.float64)
    free = torch.randn(L, F, R, 1, generator=generator, dtype=torch.float64)
    return Design([Component("shared", shared), Component("free", free * torch.eye(L)[:, None, None, :])])


def random_rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (n, 2 * L)))


def additive(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return table[..., torch.arange(L), rows[:, :L], rows[:, L:]].sum(dim=-1)


def fitted(n: int = 15, residual: float = 0.2) -> StructuredModel:
    rows = random_rows(n)
    y = 4.0 + 0.1 * torch.from_numpy(np.random.default_rng(1).random(n))
    return StructuredModel(design(), rows, y, residual=residual)


def test_feature_map_by_hand() -> None:
    plan = design()
    rows = random_rows(5)
    shared, free = plan.blocks(rows)
    phi = plan.components[0].features
    want = sum(phi[u, rows[2, u], rows[2, L + u]] for u in range(L))
    torch.testing.assert_close(shared[2], want)
    torch.testing.assert_close(free[2], torch.stack([plan.components[1].features[u, rows[2, u], rows[2, L + u], u]
                                                     for u in range(L)]))


def test_posterior_is_that_of_dense_conditioning() -> None:
    model = fitted()
    new = random_rows(6, seed=5)
    both = torch.cat([model.rows, new])
    scales = model.scales
    prior = torch.full((21, 21), 25.0, dtype=torch.float64)
    for block, name in zip(model.design.blocks(both), ("shared", "free"), strict=True):
        prior += scales[name]**2 * block @ block.T
    codes = model.design.codes(both)
    a = math.sqrt(5) * torch.cdist(codes, codes) / (math.sqrt(2 * L) * 0.4)
    prior += scales["residual"]**2 * (1 + a + a**2 / 3) * torch.exp(-a)
    observed = prior[:15, :15] + (scales["noise"]**2 + 1e-8) * torch.eye(15, dtype=torch.float64)
    gain = torch.linalg.solve(observed, prior[:15, 15:]).T
    z = model.warp.forward(model.y)
    mean, sd = model.latent(new)
    torch.testing.assert_close(mean, gain @ z, rtol=1e-6, atol=1e-8)
    want = (prior[15:, 15:] - gain @ prior[:15, 15:]).diagonal().sqrt()
    torch.testing.assert_close(sd, want, rtol=1e-5, atol=1e-7)


def test_losses_that_were_left_out_are_judged_by_their_density() -> None:
    model = fitted(residual=0.0)
    (mean, sd), judged = model.leave_one_out(), model.held_out()
    # The density of y is that of its latent value times the warp's slope.
    moved = model.y.clone().requires_grad_(True)
    slope, = torch.autograd.grad(model.warp.forward(moved).sum(), moved)
    density = torch.distributions.Normal(mean, sd).log_prob(model.warp.forward(model.y)) + slope.log()
    assert judged["nll"] == pytest.approx(float(-density.mean()))
    far = ((model.warp.forward(model.y) - mean) / sd).abs()
    assert (judged["n"], judged["coverage_50"]) == (15, float((far <= 0.6745).double().mean()))


def test_mean_table_predicts_up_to_a_constant() -> None:
    model = fitted(residual=0.0)
    rows = random_rows(8, seed=3)
    difference = model.latent(rows)[0] - additive(model.mean_table(), rows)
    torch.testing.assert_close(difference, difference[0].expand(8), rtol=1e-6, atol=1e-7)


def test_draws_have_the_posteriors_mean_and_covariance() -> None:
    model = fitted(residual=0.0)
    draws = model.sample_tables(np.random.default_rng(0), 20_000)
    rows = random_rows(2, seed=3)
    values = additive(draws, rows)
    contrast = values[:, 0] - values[:, 1]
    mean = model.latent(rows)[0]
    assert float(contrast.mean()) == pytest.approx(float(mean[0] - mean[1]), abs=0.03)
    # The deviation of a contrast, from the marginal ones of a model that also sees the pair as one more design.
    blocks = [b[0] - b[1] for b in model.design.blocks(rows)]
    trains = model.design.blocks(model.rows)
    scales = [model.scales["shared"], model.scales["free"]]
    cross = sum(s**2 * t @ b for s, t, b in zip(scales, trains, blocks, strict=True))
    prior = sum(s**2 * b @ b for s, b in zip(scales, blocks, strict=True))
    total = sum(s**2 * t @ t.T for s, t in zip(scales, trains, strict=True)) + 25.0
    total = total + (model.scales["noise"]**2 + 1e-8) * torch.eye(15, dtype=torch.float64)
    variance = float(prior - cross @ torch.linalg.solve(total, cross))
    assert float(contrast.var()) == pytest.approx(variance, rel=0.05)
    torch.testing.assert_close(model.sample_tables(np.random.default_rng(0), 1, temperature=0.0)[0],
                               model.mean_table())


def test_more_repeats_mean_less_noise() -> None:
    rows, y = random_rows(10), torch.linspace(4.0, 4.5, 10, dtype=torch.float64)
    once = StructuredModel(design(), rows, y)
    often = StructuredModel(design(), rows, y, counts=torch.full((10,), 100.0))
    assert float(often.latent(rows)[1].mean()) < float(once.latent(rows)[1].mean())


def test_a_super_additive_truth_asks_for_the_warp() -> None:
    plan = design()
    rows = random_rows(40)
    table = torch.randn(L, F, R, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    latent = additive(plan.components[0].features[..., 0] * 0.5 + 0.01 * table, rows)
    warped = StructuredModel(plan, rows, 4.0 + 0.05 * torch.exp(latent))
    straight = StructuredModel(plan, rows, 4.0 + 0.05 * latent)
    assert math.isfinite(warped.warp.offset)
    assert straight.warp.offset > warped.warp.offset


def test_warp_inverse_jacobian_and_moments() -> None:
    y = torch.tensor([4.0, 4.1, 5.0, 7.0], dtype=torch.float64)
    for warp in candidate_warps(y, (0.5, math.inf)):
        torch.testing.assert_close(warp.inverse(warp.forward(y)), y)
        moved = y.clone().requires_grad_(True)
        slope, = torch.autograd.grad(warp.forward(moved).sum(), moved)
        torch.testing.assert_close(warp.log_jacobian(y), slope.log())
    warp = LogWarp(best=4.0, offset=0.1, shift=0.02, unit=0.05)
    draws = warp.inverse(0.3 + 0.4 * torch.from_numpy(np.random.default_rng(0).standard_normal(400_000)))
    mean, sd = warp.moments(torch.tensor(0.3), torch.tensor(0.4))
    assert float(mean) == pytest.approx(float(draws.mean()), abs=2e-4)
    assert float(sd) == pytest.approx(float(draws.std()), rel=0.01)


def test_scales_that_are_taken_over_condition_as_fitted_ones() -> None:
    model, probes = fitted(), random_rows(6, seed=3)
    again = StructuredModel(model.design, model.rows, model.y, like=model)
    assert again.scales == model.scales
    for given, wanted in zip(again.latent(probes), model.latent(probes), strict=True):
        torch.testing.assert_close(given, wanted)
    fewer = StructuredModel(model.design, model.rows[:9], model.y[:9], like=model)
    assert fewer.scales == model.scales
    assert bool((fewer.latent(probes)[1] >= model.latent(probes)[1] - 1e-9).all())  # less is known


def test_posterior_equals_the_closed_form() -> None:
    model, rows = fitted(), random_rows(7, seed=5).double()
    mean, sd = model.latent(rows)
    single = model.posterior(rows[:, None, :])
    torch.testing.assert_close(single.mean[:, 0, 0], mean)
    torch.testing.assert_close(single.variance[:, 0, 0].sqrt(), sd)
    both = model.posterior(torch.stack([rows, random_rows(7, seed=6).double()]))
    assert both.mean.shape == (2, 7, 1)
    torch.testing.assert_close(both.mean[0, :, 0], mean)
    # Of two designs, the covariance is that of conditioning the model on one of them.
    joint = both.distribution.covariance_matrix[0]
    noisy = model.posterior(rows, observation_noise=True).distribution.covariance_matrix
    torch.testing.assert_close(noisy - joint, model.scales["noise"]**2 * torch.eye(7, dtype=torch.float64))
    more = StructuredModel(model.design, torch.cat([model.rows, rows[:1]]), torch.cat([model.y, model.y[:1]]),
                           like=model)
    # The model's jitter is in its observations too.
    kept = joint[1:, 1:] - torch.outer(joint[1:, 0], joint[0, 1:]) / (noisy[0, 0] + 1e-8)
    torch.testing.assert_close(more.posterior(rows[1:]).distribution.covariance_matrix, kept, rtol=1e-5, atol=1e-8)


def test_botorchs_log_expected_improvement_takes_the_model() -> None:
    model, rows = fitted(), random_rows(50, seed=5).double()
    best = float(model.warp.forward(model.y).min())
    values = LogExpectedImprovement(model, best_f=best, maximize=False)(rows[:, None, :])
    mean, sd = model.latent(rows)
    for i in (0, 7, int(values.argmax())):
        m, s = float(mean[i]), float(sd[i])
        integral, _ = quad(lambda z, m=m, s=s: (best - z) * norm.pdf(z, m, s), m - 12 * s, best)
        assert float(values[i]) == pytest.approx(math.log(integral), rel=1e-6)


def test_botorchs_batch_acquisition_takes_the_model() -> None:
    model, rows = fitted(), random_rows(12, seed=5).double()
    best = float(model.latent(rows)[0].median())
    fewer = ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))
    sampler = SobolQMCNormalSampler(torch.Size([4096]), seed=0)
    batch = qLogExpectedImprovement(model, best_f=-best, sampler=sampler, posterior_transform=fewer)
    alone = LogExpectedImprovement(model, best_f=best, maximize=False)(rows[:, None, :])
    likely = alone > alone.max() - 1.5  # the tail is beyond so many samples
    assert int(likely.sum()) >= 2
    torch.testing.assert_close(batch(rows[likely][:, None, :]), alone[likely], rtol=0.05, atol=0.1)
    assert float(batch(rows[None, :3])) >= float(alone[:3].max()) - 0.1  # three designs improve at least as much
    chosen, _ = optimize_acqf_discrete(batch, q=2, choices=rows)
    assert chosen.shape == (2, 2 * L)


def test_pending_designs_keep_the_mean_and_lower_the_variance() -> None:
    model, rows = fitted(), random_rows(6, seed=5)
    after = model.condition_on_pending(rows[:2])
    assert after.scales == model.scales
    torch.testing.assert_close(after.latent(rows)[0], model.latent(rows)[0], rtol=1e-5, atol=1e-6)
    assert bool((after.latent(rows)[1][:2] < 0.9 * model.latent(rows)[1][:2]).all())
