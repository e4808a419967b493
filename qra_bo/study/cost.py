"""Cost of trials and of whole runs, in training tokens."""

from dataclasses import dataclass

from qra_bo.trials import Fidelity, Trial

FORWARD_SHARE = 1 / 3
"""Cost of a forward-only token in training tokens."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and trials spent, failures included.

    ``training_tokens`` went forward and backward, ``forward_tokens`` forward only; ``high_fidelity`` trials were as
    long as a full one or longer.
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
    return Cost(trial.result.training_tokens, trial.result.forward_tokens, int(not low), int(low))


def affordable_steps(planned_cost: float, seeds: int, step_tokens: int, trial_steps: int,
                     wanted: int | None = None) -> int:
    """Return the steps of a confirmation that costs at most as much as the search, ``planned_cost`` training tokens.

    It trains up to three allocations on ``seeds`` seeds, each for a multiple of ``trial_steps`` steps and no fewer than
    that; for ``wanted`` steps where these are between a trial's and the most that is affordable.
    """
    most = max(1, int(planned_cost // max(1, 3 * seeds * step_tokens)) // trial_steps) * trial_steps
    return most if wanted is None else min(max(trial_steps, wanted), most)
