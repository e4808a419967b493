"""Eq. 7's network and the diagnostics."""

import pytest
import torch

from surrogates.errors import SurrogateError
from surrogates.fidelity import FidelityModel
from surrogates.structured import diagnostics, spearman


def data(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64), 4 + x[:, 0] + 0.3 * x[:, 1].square()


def test_eq7_network_has_the_published_shape_and_learns() -> None:
    x, y = data(60)
    model = FidelityModel(x, y, seed=0)
    shapes = [tuple(p.shape) for p in model._network.parameters()]
    assert shapes == [(64, 3), (64,), (32, 64), (32,), (1, 32), (1,)]
    assert spearman(model.predict(x), y) > 0.95


def test_same_seed_same_network_and_no_global_draws() -> None:
    x, y = data(20)
    state = torch.get_rng_state()
    first, second, other = (FidelityModel(x, y, seed=s).predict(x) for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_constant_columns_do_no_harm_and_few_rows_are_refused() -> None:
    x, y = data(10)
    x[:, 1] = 5.0
    assert bool(torch.isfinite(FidelityModel(x, y, seed=0).predict(x)).all())
    with pytest.raises(SurrogateError, match="at least 5 finite rows"):
        FidelityModel(x[:4], y[:4], seed=0)


def test_spearman_by_hand() -> None:
    def vector(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    assert spearman(vector(1, 2, 3, 4), vector(1, 4, 9, 16)) == pytest.approx(1.0)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1)
    assert spearman(vector(1, 2, 3), vector(1, 3, 2)) == pytest.approx(1 - 6 * 2 / 24)
    assert spearman(vector(1, 2), vector(3, 3)) is None


def test_diagnostics_by_hand() -> None:
    truth = torch.tensor([0.0, 0.1, 3.0, 1.0], dtype=torch.float64)
    mean = torch.tensor([0.2, 0.1, 0.0, -0.1], dtype=torch.float64)
    score, ones = truth - mean, torch.ones(4, dtype=torch.float64)
    result = diagnostics(truth, mean, ones, score, score.square())
    assert (result["coverage_50"], result["coverage_90"]) == (0.5, 0.75)  # errors of 0.2, 0, 3 and 1.1 deviations
    assert result["nll"] == pytest.approx((0.04 + 9 + 1.21) / 4)
    assert result["spearman"] == pytest.approx(-0.8)
    assert result["spearman_good"] == pytest.approx(-1.0)
