"""A Bayesian additive model of designs with one format and one rank for every unit, in a learned latent scale.

Symbols: ``L`` units, ``F`` formats, ``R`` ranks, ``n`` observations, ``k`` components, ``m`` features of a component.

    y = inverse_warp(z),    z = constant + sum_l (centre_l + u_l)(q_l, r_l) + residual + noise
    u_l(f, r) = sum_k scale_k sum_m Phi_k[l, f, r, m] w_k[m],    w_k ~ N(0, 1)

The warp is logarithmic with a learned offset, so that parts that add up in ``z`` are super-additive in ``y``.
Scales are fitted by maximum a posteriori; given them, everything is linear and Gaussian.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultivariateNormal
from linear_operator import to_linear_operator
from scipy.optimize import minimize
from scipy.stats import norm, spearmanr
from torch import Tensor

from surrogates.errors import SurrogateError, check_shape
from surrogates.gp import matern52
from surrogates.warp import LogWarp, candidate_warps

_CONSTANT_VARIANCE = 25.0
_JITTER = 1e-8
_LEAST_VARIANCE = 1e-10
_SPREAD = 0.7
"""Standard deviation of the logarithm of a part's scale, and of the noise, under the prior."""
_NOISE = 0.005
"""Prior median of the noise, in units of ``y``, near the best observation."""
_LENGTHSCALE = 0.4
"""Length-scale of the residual: root mean square distance per column (columns scaled to [0, 1])."""


@dataclass(frozen=True)
class Component:
    """One additive part of the latent table, whose weights all units share.

    Args:
        features: ``L x F x R x m``; a unit with columns of its own has weights of its own.
        scale: Prior median of the part's scale, in standard deviations of the latent targets.
    """

    name: str
    features: Tensor
    scale: float = 0.5


class Design:
    """The linear map from index rows to weights: common to all fits over one space.

    Rows are ``n x 2 L``: positions on the format ladder, then on the rank ladder. Positions of ranks may be fractional:
    the tables are interpolated linearly. Raises ``SurrogateError`` if there is no component, or shapes disagree.

    Args:
        components: At least one; all over the same ``L``, ``F`` and ``R``.
        centre: ``L x F x R`` prior mean of the additive tables but for a constant, in units of ``y`` near its least
            value; zero where ``None``.
    """

    def __init__(self, components: Sequence[Component], centre: Tensor | None = None) -> None:
        if not components:
            raise SurrogateError("a structured model needs at least one component; got none")
        self.shape = tuple(int(s) for s in components[0].features.shape[:3])
        for part in components:
            check_shape(f"features of {part.name!r}", part.features, (*self.shape, None))
        self.components = tuple(components)
        self.centre = torch.zeros(self.shape, dtype=torch.float64) if centre is None else centre.double()
        check_shape("the prior mean", self.centre, self.shape)

    def blocks(self, rows: Tensor) -> list[Tensor]:
        """Return the features of ``n x 2 L`` rows, ``n x m`` for every component."""
        check_shape("rows", rows, (None, 2 * self.shape[0]))
        return [self._at(c.features, rows).sum(dim=1) for c in self.components]

    def centres(self, rows: Tensor) -> Tensor:
        """Return the prior mean of ``n x 2 L`` rows, in units of ``y``, ``n``."""
        return self._at(self.centre, rows).sum(dim=1)

    def _at(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return the entries of an ``L x F x R ...`` table at ``n x 2 L`` rows, ``n x L ...``."""
        units = torch.arange(self.shape[0])
        q, position = rows[:, :self.shape[0]].long(), rows[:, self.shape[0]:].double()
        low = position.floor().long()
        part, found = position - low, table[units, q, low]
        if not bool((part > 0).any()):
            return found
        above = table[units, q, torch.clamp(low + 1, max=self.shape[2] - 1)]
        return found + part.reshape(*part.shape, *[1] * (table.ndim - 3)) * (above - found)

    def tables(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the sum over components of the tables that their ``s x m`` weights give, ``s x L x F x R``."""
        total = torch.zeros((1, *self.shape), dtype=torch.float64)
        for component, weight in zip(self.components, weights, strict=True):
            total = total + torch.einsum("lfrm,sm->slfr", component.features, weight)
        return total

    def codes(self, rows: Tensor) -> Tensor:
        """Return the ladder positions of ``... x 2 L`` rows scaled to [0, 1]."""
        n_units, n_formats, n_ranks = self.shape
        return torch.cat([rows[..., :n_units].double() / max(n_formats - 1, 1),
                          rows[..., n_units:].double() / max(n_ranks - 1, 1)], dim=-1)


class StructuredModel(Model):  # type: ignore[misc]  # botorch is untyped
    """The additive model conditioned on observations; a BoTorch model of the latent value (see the module's docstring).

    It is for values that are minimised: acquisition functions take ``maximize=False`` (or, like ``qLogEI``, a
    ``ScalarizedPosteriorTransform`` of weight -1), and thresholds in the latent scale, e.g.
    ``best_f=model.warp.forward(y).min()``.

    Args:
        rows: ``n x 2 L`` observed rows, distinct (pool repeats and count them).
        y: ``n`` values, float64, to be minimised.
        counts: ``n`` repeats pooled in every value: its noise variance is divided by that; ones where ``None``.
        like: A model over the same design whose scales, warp, residual and level of ``centre`` are taken over;
            ``None``: they are fitted, which costs ``O(n^3)`` about a hundred times.
        residual: Prior median scale of the Matern residual on ladder codes; 0 leaves it out.
        warps: Offsets to choose from, in multiples of the gap between best and median ``y``; ``None`` is no warp.

    Raises:
        SurrogateError: If shapes disagree, rows are under 2, a value is not finite, or no warp's likelihood is finite.
    """

    def __init__(self, design: Design, rows: Tensor, y: Tensor, counts: Tensor | None = None,
                 like: "StructuredModel | None" = None, *, residual: float = 0.15,
                 warps: Sequence[float | None] = (0.3, 1.0, 3.0, 10.0, None)) -> None:
        super().__init__()
        n = rows.shape[0]
        check_shape("y", y, (n,))
        if n < 2 or not torch.isfinite(y).all():
            raise SurrogateError(f"the structured model needs at least 2 finite observations; got {n}")
        self.design, self.rows, self.y = design, rows, y
        self.residual: float = residual if like is None else like.residual
        self._counts = torch.ones(n, dtype=torch.float64) if counts is None else counts.double()
        self._level: float = float(design.centres(rows).mean()) if like is None else like._level
        self._blocks = design.blocks(rows)
        grams = [b @ b.T for b in self._blocks]
        if self.residual > 0:
            grams.append(self._correlation(rows, rows))
        self._grams = torch.stack([*grams, torch.diag(1.0 / self._counts)])
        if like is None:
            evidence, self.warp, log_scales = max((self._fit(warp) for warp in candidate_warps(y, warps)),
                                                  key=lambda fit: fit[0])
            if not math.isfinite(evidence):
                raise SurrogateError(f"no warp gave a finite likelihood for {n} observations")
        else:
            self.warp, log_scales = like.warp, like._scales.log()
        self._scales: Tensor = log_scales.exp()
        self._z = self.warp.forward(y)
        squares, n_parts = self._scales.square(), len(self._blocks)
        other = self._observed(squares[n_parts:], self._grams[n_parts:])
        self._other_chol = torch.linalg.cholesky(other)
        self._chol = torch.linalg.cholesky(other + torch.einsum("k,kij->ij", squares[:n_parts], self._grams[:n_parts]))
        self._alpha = torch.cholesky_solve((self._z - self._centres(rows))[:, None], self._chol)[:, 0]

    @property
    def num_outputs(self) -> int:
        """One: the latent value."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """Empty: one model, however many batches of designs it is asked about."""
        return torch.Size()

    @property
    def scales(self) -> dict[str, float]:
        """Fitted scale of every part, ``residual`` and ``noise`` included, in latent standard deviations."""
        names = [c.name for c in self.design.components] + ["residual"] * (self.residual > 0) + ["noise"]
        return dict(zip(names, self._scales.tolist(), strict=True))

    def posterior(self, X: Tensor, output_indices: list[int] | None = None, observation_noise: bool | Tensor = False,
                  posterior_transform: PosteriorTransform | None = None, **kwargs: Any) -> Posterior:
        """Return the joint Gaussian of the latent values of ``... x q x 2 L`` index rows, float64.

        ``observation_noise=True`` adds the noise of one observation each.
        """
        rows = X.reshape(-1, X.shape[-1])
        blocks = [block.reshape(*X.shape[:-1], -1) for block in self.design.blocks(rows)]
        cross = self._prior_covariance(X, blocks, self.rows, self._blocks)
        solved = torch.linalg.solve_triangular(self._chol, cross.mT, upper=False)
        covariance = self._prior_covariance(X, blocks, X, blocks) - solved.mT @ solved
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        variance.clamp_(min=_LEAST_VARIANCE)
        if observation_noise is True:
            variance.add_(self._scales[-1]**2)
        mean = cross @ self._alpha + self._centres(rows).reshape(X.shape[:-1])
        posterior = GPyTorchPosterior(MultivariateNormal(mean, to_linear_operator(covariance)))
        return posterior if posterior_transform is None else posterior_transform(posterior)

    def latent(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the noise-free latent value of ``n x 2 L`` rows, each ``n``."""
        found = self.posterior(rows.unsqueeze(1))
        return found.mean.flatten(), found.variance.sqrt().flatten()

    def condition_on_pending(self, rows: Tensor) -> "StructuredModel":
        """Return the model with ``m x 2 L`` pending rows as if each had been observed once at its latent mean (kriging
        believer): deviations fall as one more value with the fitted noise lowers them; means, scales and warp stay."""
        predicted = self.warp.inverse(self.latent(rows)[0])
        counts = torch.cat([self._counts, torch.ones(len(rows), dtype=torch.float64)])
        return StructuredModel(self.design, torch.cat([self.rows, rows]), torch.cat([self.y, predicted]), counts, self)

    def mean_table(self) -> Tensor:
        """Return the posterior mean of the additive latent tables, ``L x F x R``."""
        return self.design.centre / self.warp.unit + self.design.tables([
            scale * (block.T @ self._alpha * scale)[None]
            for block, scale in zip(self._blocks, self._scales, strict=False)])[0]

    def sample_tables(self, rng: np.random.Generator, n: int, temperature: float = 1.0) -> Tensor:
        """Draw the additive latent tables from their posterior, ``n x L x F x R`` (Matheron's rule).

        The deviation from the posterior mean is multiplied by ``temperature``; 0 gives the mean itself.
        """
        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        parts = list(zip(self._blocks, self._scales, [normal(n, b.shape[1]) for b in self._blocks], strict=False))
        simulated = normal(n, len(self.y)) @ self._other_chol.T
        for block, scale, weight in parts:
            simulated += scale * (weight @ block.T)
        correction = torch.cholesky_solve(simulated.T, self._chol).T
        return self.design.centre / self.warp.unit + self.design.tables([
            scale * (scale * (block.T @ self._alpha) + temperature * (weight - scale * (correction @ block)))
            for block, scale, weight in parts])

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Return latent mean and standard deviation (with noise) of every observation given the others, each ``n``."""
        variance = 1.0 / torch.cholesky_inverse(self._chol).diagonal()
        return self._z - self._alpha * variance, variance.sqrt()

    def held_out(self) -> dict[str, Any]:
        """Predict every observation from the others, under the scales and the warp that were fitted to all; return the
        ``diagnostics``."""
        mean, sd = self.leave_one_out()
        score = (self._z - mean) / sd
        nll = 0.5 * score.square() + sd.log() + 0.5 * math.log(2 * math.pi) - self.warp.log_jacobian(self.y)
        return diagnostics(self.y, *self.warp.moments(mean, sd), score, nll)

    def _centres(self, rows: Tensor) -> Tensor:
        """Return the latent prior mean of ``n x 2 L`` rows, ``n``: near 0, as the constant's prior expects."""
        return (self.design.centres(rows) - self._level) / self.warp.unit

    def _prior_covariance(self, left: Tensor, left_blocks: Sequence[Tensor], right: Tensor,
                          right_blocks: Sequence[Tensor]) -> Tensor:
        """Return the prior covariances of ``... x m x 2 L`` with ``... x n x 2 L`` rows, given their features too."""
        covariance = torch.full((*left.shape[:-1], right.shape[-2]), _CONSTANT_VARIANCE, dtype=torch.float64)
        for block, other, scale in zip(left_blocks, right_blocks, self._scales, strict=False):
            covariance += scale**2 * (block @ other.mT)
        if self.residual > 0:
            covariance += self._scales[-2]**2 * self._correlation(left, right)  # the last scale is the noise's
        return covariance

    def _correlation(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the residual's Matern-5/2 correlations, ``... x m x n``."""
        width = math.sqrt(left.shape[-1]) * _LENGTHSCALE
        return matern52(torch.cdist(self.design.codes(left), self.design.codes(right)) / width)

    def _fit(self, warp: LogWarp) -> tuple[float, LogWarp, Tensor]:
        """Fit the scales under one warp: ``(log evidence at the mode, warp, log scales)``."""
        z = warp.forward(self.y) - (self.design.centres(self.rows) - self._level) / warp.unit
        priors = [(c.scale, _SPREAD) for c in self.design.components]
        if self.residual > 0:
            priors.append((self.residual, 1.0))
        priors.append((max(_NOISE / warp.unit, 1e-4), _SPREAD))
        location, spread = (torch.tensor(values, dtype=torch.float64) for values in zip(*priors, strict=True))
        location = location.log()

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            log_scales = torch.from_numpy(theta)
            squares = torch.exp(2 * log_scales)
            chol, info = torch.linalg.cholesky_ex(self._observed(squares, self._grams))
            if int(info) != 0:
                return 1e10, np.zeros_like(theta)
            alpha = torch.cholesky_solve(z[:, None], chol)[:, 0]
            standard = (log_scales - location) / spread
            value = 0.5 * z @ alpha + chol.diagonal().log().sum() + 0.5 * standard.square().sum()
            inner = torch.cholesky_inverse(chol) - torch.outer(alpha, alpha)
            gradient = squares * torch.einsum("kij,ij->k", self._grams, inner) + standard / spread
            return float(value), gradient.numpy()

        result = minimize(objective, location.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 60},
                          bounds=[(float(m - 4 * s), float(m + 4 * s)) for m, s in zip(location, spread, strict=True)])
        evidence = -float(result.fun) + float(warp.log_jacobian(self.y).sum())
        return evidence, warp, torch.from_numpy(result.x)

    @staticmethod
    def _observed(squares: Tensor, grams: Tensor) -> Tensor:
        """Return the covariance of observations under ``k`` squared scales of ``k x n x n`` parts, ``n x n``."""
        jitter = _JITTER * torch.eye(grams.shape[-1], dtype=torch.float64)
        return torch.einsum("k,kij->ij", squares, grams) + _CONSTANT_VARIANCE + jitter


def diagnostics(truth: Tensor, mean: Tensor, sd: Tensor, score: Tensor, nll: Tensor) -> dict[str, Any]:
    """Return how good predictions are of observations that the model did not see, each of ``n``.

    Args:
        truth: The observations.
        mean: Predicted mean, in the units of ``truth``.
        sd: Predicted deviation of an observation (noise included), in these units.
        score: Error over deviation, in the scale in which the prediction is Gaussian.
        nll: Negative log-likelihood of every truth (nats), in the units of ``truth``.

    Returns:
        Lists ``observed``, ``predicted`` and ``sd``; ``n``; the rank correlation of means and truths, ``spearman``, and
        over the better (smaller) half of the truths, ``spearman_good`` (large errors on bad designs raise the first
        alone); their mean ``nll``; and the shares of truths within the central intervals of probability 0.5 and 0.9,
        ``coverage_50`` and ``coverage_90``.
    """
    good, far = truth <= truth.median(), score.abs()
    inside = {f"coverage_{level}": float((far <= float(norm.ppf(0.5 + level / 200))).double().mean())
              for level in (50, 90)}
    return {"observed": truth.tolist(), "predicted": mean.tolist(), "sd": sd.tolist(), "n": len(truth),
            "spearman": spearman(mean, truth), "spearman_good": spearman(mean[good], truth[good]),
            "nll": float(nll.mean()), **inside}


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Return the rank correlation of two vectors of ``n``, ties averaged; ``None`` where either is constant."""
    constant = any(v.min() == v.max() for v in (a, b))
    return None if constant else float(spearmanr(a.numpy(), b.numpy()).statistic)
