"""Errors of the surrogate models, and the checks of training data that raise them."""

import torch
from torch import Tensor


class SurrogateError(ValueError):
    """Training data or arguments that no model can be fitted to; the message says what was expected and given."""


class SurrogateFitError(SurrogateError):
    """The hyperparameters could not be fitted, from any of the starting points tried."""


def check_shape(name: str, value: Tensor, want: tuple[int | None, ...]) -> None:
    """Compare a shape with the expected one, ``None`` standing for any size. Raises ``SurrogateError`` if they
    differ."""
    fits = value.ndim == len(want) and all(w is None or w == g for w, g in zip(want, value.shape, strict=False))
    if not fits:
        words = " x ".join("?" if w is None else str(w) for w in want)
        raise SurrogateError(f"{name} must have the shape {words}; got {tuple(value.shape)}")


def check_training_data(train_X: Tensor, train_Y: Tensor) -> None:
    """Check ``n x d`` inputs in the unit cube and ``n x 1`` targets, both float64. Raises ``SurrogateError`` if shapes
    or types are wrong, there are fewer than 2 rows, an input lies outside the unit cube, or a target is not finite."""
    check_shape("train_X", train_X, (None, None))
    check_shape("train_Y", train_Y, (train_X.shape[0], 1))
    if train_X.dtype != torch.float64 or train_Y.dtype != torch.float64:
        raise SurrogateError(f"training data must be float64; got {train_X.dtype} and {train_Y.dtype}")
    if train_X.shape[0] < 2:
        raise SurrogateError(f"at least 2 evaluations are needed; got {train_X.shape[0]}")
    if not torch.isfinite(train_X).all() or train_X.min() < 0.0 or train_X.max() > 1.0:
        raise SurrogateError("train_X must lie in the unit cube; got values from "
                             f"{train_X.min().item():g} to {train_X.max().item():g}; scale every column first")
    if not torch.isfinite(train_Y).all():
        rows = torch.nonzero(~torch.isfinite(train_Y[:, 0]))[:, 0].tolist()
        raise SurrogateError(f"train_Y must be finite; rows {rows} are not; leave failed evaluations out")
