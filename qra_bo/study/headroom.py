"""What a device turns out to hold: the budget, until something that was predicted to fit runs out of memory."""

from dataclasses import replace

from qra_bo.memory.budget import smallest
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import with_allowance
from qra_bo.study.runner import Runner
from qra_bo.study.uniform_baselines import BaselineRules
from qra_bo.trials import Trial, TrialState


class Headroom:
    """The limit on predicted bytes. What runs out of memory lowers it for the rest of the run: the device holds less
    than the budget says, and the difference is an allowance that is left alone. Of the objective that says nothing.

    Args:
        rules: What fits the budget.
    """

    def __init__(self, rules: BaselineRules) -> None:
        self.rules = rules
        self._budget = rules.budget_bytes

    @property
    def allowance(self) -> int:
        """Bytes of the budget that the device turned out not to have."""
        return self._budget - self.rules.budget_bytes

    def ran_out(self, run: Runner, e: Trial) -> bool:
        """Whether an evaluation lowered the limit."""
        limit = e.predicted_bytes - 1
        if e.result.state is not TrialState.OOM or limit >= self.rules.budget_bytes:
            return False
        self.rules = replace(self.rules, budget_bytes=limit)
        run.warn(f"{e.allocation.fingerprint} ran out of memory although {e.predicted_bytes:,} bytes were predicted, "
                 f"within the budget of {self._budget:,}: the allowance grows by {self.allowance:,} bytes, so that "
                 f"what needs more than {limit:,} is not tried")
        return True

    def within(self, problem: SearchProblem) -> SearchProblem | None:
        """``problem`` with the memory that is there; ``None`` where that holds no allocation."""
        costs = with_allowance(problem.costs, self.allowance)
        return replace(problem, costs=costs) if smallest(costs, problem.space)[0] <= problem.budget_bytes else None
