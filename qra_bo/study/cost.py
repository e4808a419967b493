"""The cost of everything a run does, in training tokens: a forward-only token counts one third."""

from dataclasses import dataclass

from qra_bo.trials import Fidelity, Trial

FORWARD_SHARE = 1 / 3
"""Cost of a forward-only token in training tokens."""
UNSEARCHED_STAGES = frozenset({"reference", "confirmation", "rate_check", "ranking_check"})
"""Stages that are counted in a run's cost and do not come out of what its effort may spend on the search."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and evaluations spent.

    Args:
        training_tokens: Tokens that went forward and backward.
        forward_tokens: Tokens that went forward only.
        high_fidelity: Evaluations at high fidelity or longer, failures included.
        low_fidelity: Evaluations at low fidelity, failures included.
    """

    training_tokens: int = 0
    forward_tokens: int = 0
    high_fidelity: int = 0
    low_fidelity: int = 0

    @property
    def tokens(self) -> float:
        """Everything, in training tokens."""
        return self.training_tokens + FORWARD_SHARE * self.forward_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.training_tokens + other.training_tokens, self.forward_tokens + other.forward_tokens,
                    self.high_fidelity + other.high_fidelity, self.low_fidelity + other.low_fidelity)


def cost_of(evaluation: Trial) -> Cost:
    """Cost of one evaluation; a promotion pays only the steps it added."""
    low = evaluation.fidelity is Fidelity.LOW
    m = evaluation.result
    return Cost(m.training_tokens, m.forward_tokens, int(not low), int(low))
