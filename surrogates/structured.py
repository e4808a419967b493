"""A Bayesian additive model of designs with one format and one rank for every unit, in a learned latent scale.

Symbols: ``L`` units, ``F`` formats, ``R`` ranks, ``n`` observations, ``k`` components, ``D`` weights in all.

    y = inverse_warp(z),    z = constant + sum_l u_l(q_l, r_l) + residual + noise
    u_l(f, r) = sum_k scale_k sum_m Phi_k[l, f, r, m] (G_k w_k)[l, m],    w_k ~ N(0, 1)

The warp is logarithmic with a learned offset, so that parts that add up in ``z`` are super-additive in ``y``.
Scales are fitted by maximum a posteriori; given them, everything is linear and Gaussian.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from surrogates.checks import check_shape
from surrogates.diagnostics import HeldOut, gaussian_nll
from surrogates.errors import SurrogateError, SurrogateFitError
from surrogates.kernels import matern52
from surrogates.warp import LogWarp, candidate_warps

_CONSTANT_VARIANCE = 25.0
_CHUNK = 2048


@dataclass(frozen=True)
class Component:
    """One additive part of the latent table.

    Args:
        name: For diagnostics.
        features: ``L x F x R x m``.
        units: ``L x g`` factor of the covariance between units: a column of ones shares the weights, the
            identity frees them, anything between couples neighbours.
        scale: Prior median of the part's scale, in standard deviations of the latent targets.
        spread: Standard deviation of the logarithm of that scale.
    """

    name: str
    features: Tensor
    units: Tensor
    scale: float = 0.5
    spread: float = 0.7


@dataclass(frozen=True)
class StructuredSettings:
    """Settings of ``StructuredModel``.

    Args:
        noise: Prior median of the noise, in units of ``y``, near the best observation.
        noise_spread: Standard deviation of its logarithm.
        residual: Prior median scale of the Matern residual on ladder codes; 0 leaves it out.
        lengthscale: Root mean square distance per column (columns scaled to [0, 1]) that it takes as 1.
        warps: Offsets of the warp to choose from, in multiples of the gap between best and median ``y``;
            infinity is no warp.
    """

    noise: float = 0.005
    noise_spread: float = 0.7
    residual: float = 0.15
    lengthscale: float = 0.4
    warps: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, math.inf)


class Design:
    """The linear map from index rows to weights: what is common to all fits over one space.

    Rows are ``n x 2 L``: positions on the format ladder, then on the rank ladder. Positions of ranks may be
    fractional: the tables are interpolated linearly.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        if not components:
            raise SurrogateError("a structured model needs at least one component; got none")
        self.shape = tuple(int(s) for s in components[0].features.shape[:3])
        for part in components:
            check_shape(f"features of {part.name!r}", part.features, (*self.shape, None))
            check_shape(f"units of {part.name!r}", part.units, (self.shape[0], None))
        self.components = tuple(components)

    def blocks(self, rows: Tensor) -> list[Tensor]:
        """Features of ``n x 2 L`` rows, ``n x (g m)`` for every component."""
        n_units = self.shape[0]
        check_shape("rows", rows, (None, 2 * n_units))
        units = torch.arange(n_units)
        q, position = rows[:, :n_units].long(), rows[:, n_units:].double()
        low = position.floor().long()
        part = position - low
        high = torch.clamp(low + 1, max=self.shape[2] - 1)
        fractional = bool((part > 0).any())
        result = []
        for component in self.components:
            phi = component.features[units, q, low]
            if fractional:
                phi = phi + part[..., None] * (component.features[units, q, high] - phi)
            result.append(torch.einsum("nlm,lg->ngm", phi, component.units).reshape(len(rows), -1))
        return result

    def table(self, index: int, weights: Tensor) -> Tensor:
        """``s x L x F x R`` tables of component ``index`` for ``s x (g m)`` weights."""
        component = self.components[index]
        per_unit = torch.einsum("lg,sgm->slm", component.units,
                                weights.reshape(len(weights), component.units.shape[1], -1))
        return torch.einsum("lfrm,slm->slfr", component.features, per_unit)

    def codes(self, rows: Tensor) -> Tensor:
        """Ladder positions of ``n x 2 L`` rows scaled to [0, 1]."""
        n_units, n_formats, n_ranks = self.shape
        return torch.cat([rows[:, :n_units].double() / max(n_formats - 1, 1),
                          rows[:, n_units:].double() / max(n_ranks - 1, 1)], dim=1)


class StructuredModel:
    """The posterior of the additive model; see the module's docstring.

    Args:
        design: Components over the space.
        rows: ``n x 2 L`` observed rows, distinct (pool repeats and count them).
        y: ``n`` values, float64, to be minimised.
        counts: ``n`` repeats pooled in every value: its noise variance is divided by that; ones where ``None``.
        settings: See ``StructuredSettings``.
        like: A model over the same design and settings whose scales and warp are taken over; they are fitted where
            ``None``, which costs ``O(n^3)`` some hundred times, where conditioning on ``n`` rows does so once.

    Raises:
        SurrogateError: If shapes disagree, there are fewer than 2 rows, or a value is not finite (in the latent scale
            of ``like``, where it is given).
        SurrogateFitError: If no warp gives a finite likelihood.
    """

    def __init__(self, design: Design, rows: Tensor, y: Tensor, counts: Tensor | None = None,
                 settings: StructuredSettings | None = None, like: "StructuredModel | None" = None) -> None:
        n = rows.shape[0]
        check_shape("y", y, (n,))
        if n < 2 or not torch.isfinite(y).all():
            raise SurrogateError(f"the structured model needs at least 2 finite observations; got {n}")
        self.design, self.rows, self.y = design, rows, y
        self.settings = settings or StructuredSettings()
        self._counts = torch.ones(n, dtype=torch.float64) if counts is None else counts.double()
        self._blocks = design.blocks(rows)
        grams = [b @ b.T for b in self._blocks]
        if self.settings.residual > 0:
            grams.append(self._residual_kernel(rows))
        grams.append(torch.diag(1.0 / self._counts))
        self._grams = torch.stack(grams)
        if like is None:
            fits = [self._fit(warp) for warp in candidate_warps(y, self.settings.warps)]
            best = max(fits, key=lambda f: f[0])
            if not math.isfinite(best[0]):
                raise SurrogateFitError(f"no warp gave a finite likelihood for {n} observations")
            self.warp, log_scales = best[1:]
        else:
            self.warp, log_scales = like.warp, like._scales.log()
            if not torch.isfinite(self.warp.forward(y)).all():
                raise SurrogateError("a value lies beyond the pole of the warp that is taken over")
        self._condition(log_scales)

    @property
    def scales(self) -> dict[str, float]:
        """Fitted scale of every part, ``residual`` and ``noise`` included, in latent standard deviations."""
        names = [c.name for c in self.design.components]
        names += ["residual"] if self.settings.residual > 0 else []
        return dict(zip([*names, "noise"], self._scales.tolist(), strict=True))

    def latent(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noise-free latent value of ``n x 2 L`` rows, each ``n``."""
        means, deviations = [], []
        for chunk in torch.split(rows, _CHUNK):
            blocks = self.design.blocks(chunk)
            cross = self._cross(chunk, blocks)
            prior = torch.full((len(chunk),), _CONSTANT_VARIANCE, dtype=torch.float64)
            for block, scale in zip(blocks, self._scales, strict=False):
                prior += scale**2 * block.square().sum(dim=1)
            if self.settings.residual > 0:
                prior += self._scales[-2]**2
            means.append(cross @ self._alpha)
            solved = torch.linalg.solve_triangular(self._chol, cross.T, upper=False)
            deviations.append((prior - solved.square().sum(dim=0)).clamp_min(1e-12).sqrt())
        return torch.cat(means), torch.cat(deviations)

    def covariance(self, rows: Tensor) -> Tensor:
        """Posterior covariance of the noise-free latent values of ``n x 2 L`` rows, ``n x n``."""
        blocks = self.design.blocks(rows)
        prior = torch.full((len(rows), len(rows)), _CONSTANT_VARIANCE, dtype=torch.float64)
        for block, scale in zip(blocks, self._scales, strict=False):
            prior += scale**2 * (block @ block.T)
        if self.settings.residual > 0:
            prior += self._scales[-2]**2 * self._correlation(rows, rows)
        solved = torch.linalg.solve_triangular(self._chol, self._cross(rows, blocks).T, upper=False)
        covariance: Tensor = prior - solved.T @ solved
        return covariance

    @property
    def noise(self) -> float:
        """Latent standard deviation of one observation."""
        return float(self._scales[-1])

    def predict(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noise-free value in units of ``y``, each ``n``."""
        return self.warp.moments(*self.latent(rows))

    def to_latent(self, y: Tensor) -> Tensor:
        """Latent values of ``n`` values in units of ``y``."""
        return self.warp.forward(y)

    def mean_table(self) -> Tensor:
        """Posterior mean of the additive latent tables, ``L x F x R``."""
        return self._tables([b.T @ self._alpha * s for b, s in zip(self._blocks, self._scales, strict=False)])[0]

    def sample_tables(self, rng: np.random.Generator, n: int, temperature: float = 1.0) -> Tensor:
        """Draws of the additive latent tables from their posterior, ``n x L x F x R`` (Matheron's rule).

        Args:
            rng: Source of the draws.
            n: Number of draws.
            temperature: Factor on the deviation from the posterior mean; 0 gives the mean itself.
        """
        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        weights = [normal(n, b.shape[1]) for b in self._blocks]
        simulated = normal(n, len(self.y)) @ self._other_chol.T
        for weight, block, scale in zip(weights, self._blocks, self._scales, strict=False):
            simulated += scale * (weight @ block.T)
        correction = torch.cholesky_solve(simulated.T, self._chol).T
        parts = []
        for weight, block, scale in zip(weights, self._blocks, self._scales, strict=False):
            mean = scale * (block.T @ self._alpha)
            parts.append(mean + temperature * (weight - scale * (correction @ block)))
        return self._tables(parts)

    @cached_property
    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Latent mean and standard deviation (noise included) of every observation given the others, each ``n``."""
        inverse = torch.cholesky_inverse(self._chol)
        variance = 1.0 / inverse.diagonal()
        return self._z - self._alpha * variance, variance.sqrt()

    def held_out(self) -> HeldOut:
        """Every observation as the others predict it, under the scales and the warp that were fitted to all."""
        mean, sd = self.leave_one_out
        score = (self._z - mean) / sd
        return HeldOut(self.y, *self.warp.moments(mean, sd), score,
                       gaussian_nll(score, sd) - self.warp.log_jacobian(self.y))

    def _tables(self, parts: list[Tensor]) -> Tensor:
        total = torch.zeros((1, *self.design.shape), dtype=torch.float64)
        for index, part in enumerate(parts):
            weights = part if part.ndim == 2 else part[None, :]
            total = total + self.design.table(index, self._scales[index] * weights)
        return total

    def _cross(self, rows: Tensor, blocks: list[Tensor]) -> Tensor:
        """Prior covariances of ``m x 2 L`` rows, whose features are ``blocks``, with the observed ones, ``m x n``."""
        cross = torch.full((len(rows), len(self.y)), _CONSTANT_VARIANCE, dtype=torch.float64)
        for block, train, scale in zip(blocks, self._blocks, self._scales, strict=False):
            cross += scale**2 * (block @ train.T)
        if self.settings.residual > 0:
            cross += self._scales[-2]**2 * self._residual_kernel(rows)
        return cross

    def _residual_kernel(self, rows: Tensor) -> Tensor:
        """Matern-5/2 correlations of ``m x 2 L`` rows with the observed ones, ``m x n``."""
        return self._correlation(rows, self.rows)

    def _correlation(self, left: Tensor, right: Tensor) -> Tensor:
        codes, train = self.design.codes(left), self.design.codes(right)
        width = math.sqrt(codes.shape[1]) * self.settings.lengthscale
        return matern52(torch.cdist(codes, train) / width)

    def _prior(self, warp: LogWarp) -> tuple[Tensor, Tensor]:
        medians = [c.scale for c in self.design.components]
        spreads = [c.spread for c in self.design.components]
        if self.settings.residual > 0:
            medians.append(self.settings.residual)
            spreads.append(1.0)
        medians.append(max(self.settings.noise / warp.unit, 1e-4))
        spreads.append(self.settings.noise_spread)
        return torch.tensor(medians, dtype=torch.float64).log(), torch.tensor(spreads, dtype=torch.float64)

    def _fit(self, warp: LogWarp) -> tuple[float, LogWarp, Tensor]:
        """Maximum a posteriori scales under one warp: ``(log evidence at the mode, warp, log scales)``."""
        z = warp.forward(self.y)
        location, spread = self._prior(warp)
        n = len(z)
        eye = torch.eye(n, dtype=torch.float64)

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            log_scales = torch.from_numpy(theta)
            squares = torch.exp(2 * log_scales)
            covariance = torch.einsum("k,kij->ij", squares, self._grams) + _CONSTANT_VARIANCE + _JITTER * eye
            chol, info = torch.linalg.cholesky_ex(covariance)
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

    def _condition(self, log_scales: Tensor) -> None:
        self._scales = log_scales.exp()
        self._z = self.warp.forward(self.y)
        squares = self._scales.square()
        n_parts = len(self._blocks)
        eye = torch.eye(len(self.y), dtype=torch.float64)
        other = (torch.einsum("k,kij->ij", squares[n_parts:], self._grams[n_parts:]) + _CONSTANT_VARIANCE
                 + _JITTER * eye)
        total = other + torch.einsum("k,kij->ij", squares[:n_parts], self._grams[:n_parts])
        self._other_chol = torch.linalg.cholesky(other)
        self._chol = torch.linalg.cholesky(total)
        self._alpha = torch.cholesky_solve(self._z[:, None], self._chol)[:, 0]


_JITTER = 1e-8
