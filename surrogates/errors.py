"""The error of the surrogate models, and the check of a shape."""

from torch import Tensor


class SurrogateError(ValueError):
    """Training data or arguments that no model can be fitted to, from any starting point that was tried; the message
    says what was expected and given."""


def check_shape(name: str, value: Tensor, want: tuple[int | None, ...]) -> None:
    """Compare a shape with the expected one, ``None``: any size. Raises ``SurrogateError`` if they differ."""
    fits = value.ndim == len(want) and all(w is None or w == g for w, g in zip(want, value.shape, strict=False))
    if not fits:
        words = " x ".join("?" if w is None else str(w) for w in want)
        raise SurrogateError(f"{name} must have the shape {words}; got {tuple(value.shape)}")
