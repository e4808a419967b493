"""Starts of LoftQ (arXiv 2310.08659) and LQ-LoRA (arXiv 2311.12023), which decompose a weight into a quantised and a
low-rank part.

Both alternate a quantisation of ``W - L`` with a singular value decomposition of ``W - Q``; they differ in the order of
the two, and in when to stop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.table1.lowrank import Factors, leading
from bench.table1.recipe import ALTERNATIONS
from bench.table1.starts import Pair, Requantise
from qra_bo.finetune.quantization.base import State


@dataclass(frozen=True, slots=True)
class Decomposition:
    """``W ~ Q + L``: packed Q, L, and the Frobenius norm of ``W - Q - L`` over that of ``W`` after every iteration."""

    state: State
    factors: Factors
    errors: tuple[float, ...]


def loftq(weight: Tensor, requantise: Requantise, rank: int, scale: float) -> tuple[State, Pair]:
    """Return the packed base, A and B of LoftQ; see ``bench.table1.starts.Start``."""
    found = quantised_first(weight, requantise, rank, ALTERNATIONS)
    return found.state, balanced(found.factors, scale)


def lq_lora(weight: Tensor, requantise: Requantise, rank: int, scale: float) -> tuple[State, Pair]:
    """Return the packed base, A and B of LQ-LoRA; see ``bench.table1.starts.Start``."""
    found = low_rank_first(weight, requantise, rank, ALTERNATIONS)
    return found.state, balanced(found.factors, scale)


def balanced(factors: Factors, scale: float) -> Pair:
    """Return A and B with ``scale B A`` the product of ``factors``; both have the roots of the singular values."""
    values = torch.linalg.vector_norm(factors.up, dim=0).div(scale).clamp_min(torch.finfo(torch.float32).tiny)
    roots = values.sqrt()
    return factors.down * roots[:, None], factors.up / (scale * roots)


def quantised_first(weight: Tensor, requantise: Requantise, rank: int, iterations: int) -> Decomposition:
    """LoftQ: ``Q_t = quantise(W - L_{t-1})``, ``L_t = SVD_r(W - Q_t)``, from ``L_0 = 0``, for ``iterations`` >= 1."""
    weight = weight.float()
    low, errors = torch.zeros(()), []
    for _ in range(iterations):
        state, dense = requantise(weight - low)
        residual = weight - dense.float()
        factors = leading(residual, rank)
        low = factors.product()
        errors.append(_relative(residual - low, weight))
    return Decomposition(state, factors, tuple(errors))


def low_rank_first(weight: Tensor, requantise: Requantise, rank: int, iterations: int,
                   first: Factors | None = None) -> Decomposition:
    """LQ-LoRA: ``L_t = SVD_r(W - Q_{t-1})``, ``Q_t = quantise(W - L_t)``, from ``Q_0 = 0``.

    Ends after ``iterations`` >= 1, or as soon as an error rises, and returns the iterate of the least error. ``first``
    is ``L_1``, where it is known.
    """
    weight = weight.float()
    factors, dense = first, torch.zeros(())
    errors: list[float] = []
    for _ in range(iterations):
        if factors is None or errors:
            factors = leading(weight - dense, rank)
        low = factors.product()
        state, unpacked = requantise(weight - low)
        dense = unpacked.float()
        errors.append(_relative(weight - low - dense, weight))
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
        best = state, factors
    return Decomposition(*best, tuple(errors))


def _relative(error: Tensor, weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(weight))
