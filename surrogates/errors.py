"""Errors of the surrogate models."""


class SurrogateError(ValueError):
    """Training data or arguments that no model can be fitted to; the message says what was expected and given."""


class SurrogateFitError(SurrogateError):
    """The hyperparameters could not be fitted, from any of the starting points tried."""
