"""Two search methods one after the other: the published algorithm and QR-Adaptor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qra_bo.searchers.base import Searcher, SearchProblem, SelfChecking
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import ConfigError


class TwoStages:
    """One searcher until its share is spent or it has nothing left, then a second that learned of the same trials.

    Raises ``ConfigError`` if ``share`` is not in [0, 1], or an option of a stage is out of its range.

    Args:
        first: Makes the first stage from a problem, e.g. a partial ``EvolutionarySearch``.
        second: Makes the second stage; it learns of every high-fidelity trial.
        share: Share of ``problem.max_full_trials`` that the first may spend: new steps over the steps of a full trial.
        low_fidelity: Whether the stages may use low fidelity.
    """

    name, published = "two_stages", True  # a published method's winner is its own

    def __init__(self, problem: SearchProblem, first: Callable[[SearchProblem], Searcher],
                 second: Callable[[SearchProblem], Searcher], *, share: float = 0.6, low_fidelity: bool = True) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"method.share must lie in [0, 1]; got {share!r}")
        problem = problem if low_fidelity else replace(problem, low_steps=None)
        self._first, self._second = first(problem), second(problem)
        self._left = share * problem.max_full_trials * problem.high_steps
        self._steps = {Fidelity.HIGH: problem.high_steps, Fidelity.LOW: problem.low_steps or problem.high_steps}
        self._awaited: set[tuple[str, Fidelity]] = set()
        self._first_is_done = False

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` proposals of the current stage: the second's once the first has asked for its share.

        None while a first stage with some of its share left waits for trials, or where the second proposes what the
        first is waiting for.
        """
        if not self._first_is_done:
            has_some = self._left > sum(self._steps[fidelity] for _, fidelity in self._awaited)
            proposals = self._first.ask(n) if has_some else []
            self._awaited.update((p.allocation.fingerprint, p.fidelity) for p in proposals)
            if proposals or (has_some and self._awaited):
                return proposals
            self._first_is_done = not self._awaited
        return [p for p in self._second.ask(n) if (p.allocation.fingerprint, p.fidelity) not in self._awaited]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Let both stages learn of everything; the second of high fidelity only.

        Trials of the first stage that were not asked for here are those of the run's search before less memory was
        left: they count against its share too.
        """
        for trial in trials:
            key = (trial.allocation.fingerprint, trial.fidelity)
            if key in self._awaited or trial.stage == self._first.name:
                self._awaited.discard(key)
                # A failed trial does not report its steps: it counts in full where it trained at all.
                charged_in_full = not trial.ok and trial.result.training_tokens > 0
                self._left -= trial.result.new_steps or (self._steps[trial.fidelity] if charged_in_full else 0)
        self._first.tell(trials)
        self._second.tell([trial for trial in trials if trial.fidelity is Fidelity.HIGH])

    def surrogate_check(self) -> Mapping[str, Any] | None:
        """See ``SelfChecking``: that of the second stage, where it has one."""
        return self._second.surrogate_check() if isinstance(self._second, SelfChecking) else None
