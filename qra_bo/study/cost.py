"""The cost of a run in training tokens: a forward-only token counts one third."""

from dataclasses import dataclass

from qra_bo.trials import Fidelity, Trial

FORWARD_SHARE = 1 / 3
"""Cost of a forward-only token in training tokens."""
UNSEARCHED_STAGES = frozenset({"reference", "confirmation", "rate_check", "ranking_check"})
"""Stages that count in a run's cost and not against its effort."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and trials spent.

    Args:
        training_tokens: Tokens that went forward and backward.
        forward_tokens: Tokens that went forward only.
        high_fidelity: Trials at full fidelity or longer, failures included.
        low_fidelity: Trials at low fidelity, failures included.
    """

    training_tokens: int = 0
    forward_tokens: int = 0
    high_fidelity: int = 0
    low_fidelity: int = 0

    @property
    def tokens(self) -> float:
        """The whole cost in training tokens."""
        return self.training_tokens + FORWARD_SHARE * self.forward_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.training_tokens + other.training_tokens, self.forward_tokens + other.forward_tokens,
                    self.high_fidelity + other.high_fidelity, self.low_fidelity + other.low_fidelity)


def cost_of(trial: Trial) -> Cost:
    """Return the cost of one trial; a promotion pays only the steps it added."""
    low = trial.fidelity is Fidelity.LOW
    m = trial.result
    return Cost(m.training_tokens, m.forward_tokens, int(not low), int(low))
