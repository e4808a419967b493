"""Rules of the final fine-tune: its length, when its validation loss is taken, when it ends, and what it keeps."""

from collections.abc import Sequence
from typing import Literal

from qra_bo.utils.fields import Count, Group, Positive

VALIDATIONS, LEAST_APART, SHORT = 10, 25, 8
"""Validations of a final fine-tune where their distance is not given, and the least number of steps between two: one
costs as much as a few steps. A shorter training has one at its half, where that is at least ``SHORT`` steps."""
Curve = Sequence[tuple[int, float]]
"""Steps and the validation loss after each, in nats per target token."""


class FinalConfig(Group):
    """Options of the final fine-tune.

    Args:
        steps: Optimiser steps; ``None``: by ``epochs`` and ``max_steps``.
        epochs: Passes over the training split.
        max_steps: Most steps that ``epochs`` may come to; ``None``: no limit.
        validate_every: Steps between two validations; ``None``: a tenth of the training, at least 25, at most half.
        keep: Adapter that is delivered: of the least validation loss (``"best"``), or of the last step.
        patience: Successive validations without a lower loss after which training ends; ``None``: it never ends early.
    """

    steps: Count | None
    epochs: Positive
    max_steps: Count | None
    validate_every: Count | None
    keep: Literal["best", "last"]
    patience: Count | None

    def length(self, sequences: float, step_sequences: int) -> int:
        """Return the optimiser steps for ``sequences`` of training, of which one takes ``step_sequences``."""
        if self.steps is not None:
            return self.steps
        wanted = max(1, round(self.epochs * sequences / step_sequences))
        return wanted if self.max_steps is None else min(wanted, self.max_steps)

    def validations(self, length: int) -> tuple[int, ...]:
        """Return the steps, of ``length``, after which the validation loss is taken; the last is ``length``."""
        half = -(-length // 2)
        apart = min(LEAST_APART, half) if half >= SHORT else LEAST_APART
        every = self.validate_every or max(apart, round(length / VALIDATIONS))
        return (*range(every, length, every), length)

    def ended(self, curve: Curve) -> bool:
        """Return whether the last ``patience`` validations all lack a loss below those before them."""
        return self.patience is not None and len(curve) > self.patience and \
            len(curve) - 1 - _best(curve) >= self.patience

    def kept(self, curve: Curve) -> int:
        """Return the step whose adapter is delivered; ``curve`` holds one validation at least."""
        return curve[_best(curve) if self.keep == "best" else -1][0]


def _best(curve: Curve) -> int:
    """Return the index of the least loss; the first of equals."""
    return min(range(len(curve)), key=lambda i: curve[i][1])
