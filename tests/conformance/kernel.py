"""What every kernel must satisfy; a new one joins by one line in ``tests/surrogates/test_kernels.py``."""

from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel


class KernelConformance:
    """Subclasses provide the fixtures ``make`` (builds the kernel, double precision) and ``n_columns``."""

    @staticmethod
    def inputs(n: int, n_columns: int, seed: int = 0) -> torch.Tensor:
        return torch.rand(n, n_columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def test_symmetric_and_positive_definite(self, make: Callable[[], Kernel], n_columns: int) -> None:
        x = self.inputs(20, n_columns)
        covariance = make()(x).to_dense()
        torch.testing.assert_close(covariance, covariance.T, atol=1e-12, rtol=0)
        assert float(torch.linalg.eigvalsh(covariance.detach()).min()) > -1e-9

    def test_diagonal_is_that_of_the_matrix(self, make: Callable[[], Kernel], n_columns: int) -> None:
        x = self.inputs(7, n_columns)
        kernel = make()
        torch.testing.assert_close(kernel(x, diag=True), kernel(x).to_dense().diagonal())

    def test_cross_covariances_are_a_block(self, make: Callable[[], Kernel], n_columns: int) -> None:
        a, b = self.inputs(4, n_columns), self.inputs(5, n_columns, seed=1)
        kernel = make()
        block = kernel(torch.cat([a, b])).to_dense()[:4, 4:]
        torch.testing.assert_close(kernel(a, b).to_dense(), block)

    def test_batches_equal_loops(self, make: Callable[[], Kernel], n_columns: int) -> None:
        x = torch.stack([self.inputs(5, n_columns, seed=s) for s in range(3)])
        kernel = make()
        batched = kernel(x).to_dense()
        torch.testing.assert_close(batched, torch.stack([kernel(v).to_dense() for v in x]))

    def test_hyperparameters_get_gradients(self, make: Callable[[], Kernel], n_columns: int) -> None:
        kernel = make()
        kernel(self.inputs(6, n_columns)).to_dense().sum().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in kernel.parameters())

    def test_nearer_designs_are_more_alike(self, make: Callable[[], Kernel], n_columns: int) -> None:
        steps = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None].expand(6, n_columns)
        first = make()(steps).to_dense()[0]
        assert bool((first[1:] < first[:-1]).all())
