"""Kernels: the conformance suite, and values by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel

from surrogates.errors import SurrogateError
from surrogates.gp import JointUnitKernel, OrdinalMaternKernel, matern52
from tests.conformance.kernel import KernelConformance


def test_matern_closed_form() -> None:
    d = torch.tensor([0.0, 1.0], dtype=torch.float64)
    a = math.sqrt(5)
    assert matern52(d).tolist() == pytest.approx([1.0, (1 + a + 5 / 3) * math.exp(-a)])


def test_ordinal_kernel_is_gpytorchs_matern_in_one_dimension() -> None:
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    theirs = MaternKernel(nu=2.5).double()
    theirs.lengthscale = 0.5
    torch.testing.assert_close(OrdinalMaternKernel(0.5).double()(x).to_dense(), theirs(x).to_dense())


def test_joint_kernel_by_hand() -> None:
    kernel = JointUnitKernel(2).double()
    kernel.weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    a = torch.tensor([[0.0, 0.5, 1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.5, 1.0, 0.5]], dtype=torch.float64)
    far, half = (float(matern52(torch.tensor(d / 0.5))) for d in (1.0, 0.5))
    first = 0.5 * far + 0.3 * 1.0 + 0.2 * far
    second = 0.5 * 1.0 + 0.3 * half + 0.2 * half
    assert kernel(a, b).to_dense().item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_joint_kernel_refuses_other_widths() -> None:
    with pytest.raises(SurrogateError, match="6 columns for 3 units; got 4"):
        JointUnitKernel(3).double()(torch.zeros(1, 4, dtype=torch.float64)).to_dense()


class TestOrdinal(KernelConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Kernel]:
        return lambda: OrdinalMaternKernel().double()

    @pytest.fixture
    def n_columns(self) -> int:
        return 1


class TestJoint(KernelConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Kernel]:
        return lambda: JointUnitKernel(3).double()

    @pytest.fixture
    def n_columns(self) -> int:
        return 6
