"""The published GP, and the checks of its data."""

import math

import pytest
import torch
from botorch.exceptions import ModelFittingError
from gpytorch.kernels import MaternKernel

import surrogates.gp
from surrogates.errors import SurrogateError
from surrogates.gp import condition_on_pending, fit_gp, gp_predict, matern52


def data(n: int = 12, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, (x[:, :1] * 2 - x[:, 1:2]).square()


def test_learns_a_smooth_function_and_is_reproducible() -> None:
    (x, y), state = data(30), torch.get_rng_state()
    model = fit_gp(x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(model.covar_module, MaternKernel)
    new, truth = data(60)
    mean, sd = gp_predict(model, new[30:])
    assert float((mean - truth[30:, 0]).abs().mean()) < 0.2 * float(truth.std())
    assert bool((sd > 0).all())
    torch.testing.assert_close(gp_predict(fit_gp(x, y), new)[0], gp_predict(model, new)[0])


def test_matern_closed_form() -> None:
    d, a = torch.tensor([0.0, 1.0], dtype=torch.float64), math.sqrt(5)
    assert matern52(d).tolist() == pytest.approx([1.0, (1 + a + 5 / 3) * math.exp(-a)])


def test_a_failed_fit_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ModelFittingError("no")

    monkeypatch.setattr(surrogates.gp, "fit_gpytorch_mll", fail)
    with pytest.raises(SurrogateError, match="12 points of dimension 4"):
        fit_gp(*data())


@pytest.mark.parametrize(("n", "columns"), [(8, 1), (10, 2)])
def test_targets_of_another_shape_are_told(n: int, columns: int) -> None:
    with pytest.raises(SurrogateError, match=rf"train_Y must have the shape 10 x 1; got \({n}, {columns}\)"):
        fit_gp(data(10)[0], torch.ones(n, columns, dtype=torch.float64))


def test_pending_points_keep_the_mean_and_lower_the_variance() -> None:
    model = fit_gp(*data(30))
    new = data(40)[0][30:]
    before, after = gp_predict(model, new), gp_predict(condition_on_pending(model, new[:2]), new)
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-4)
    assert bool((after[1][:2] < 0.9 * before[1][:2]).all())
    assert bool((after[1] <= before[1] + 1e-9).all())
