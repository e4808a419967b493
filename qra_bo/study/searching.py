"""The search of a run: ask, evaluate and tell, with as many proposals under way as there are workers.

What a searcher proposes depends on what it had been told when it was asked, and so on the order in which evaluations
ended. The journal holds that order, and with every evaluation how many were kept under way: a replay asks and tells as
the sessions before did, whatever number of workers it has itself. With one worker that is plain ask, evaluate and tell.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import qra_bo
from qra_bo.searchers.base import Searcher
from qra_bo.study.cost import cost_of
from qra_bo.study.headroom import Headroom
from qra_bo.study.runner import ENGINE_STAGES, PlannedTrial, Runner
from qra_bo.trials import Fidelity, Proposal, Trial, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError, QRABOError

log = logging.getLogger(__name__)


class SearcherError(QRABOError):
    """A search method broke its contract: a bug, never a result."""


class Search:
    """One session's search.

    A searcher is not told what ran out of memory. Once nothing is pending any more another one takes over, which has
    less memory and knows all the rest.

    Args:
        run: Where evaluations come from.
        make: A searcher within the memory that is there, told of the given evaluations; ``None`` where that memory
            holds no allocation.
        room: What fits.
        known: Evaluations that the searcher is told of without asking, by key.

    Attributes:
        searcher: The one at work; ``None`` where no memory was left for any.
    """

    def __init__(self, run: Runner, make: Callable[[Sequence[Trial]], Searcher | None], room: Headroom,
                 known: Mapping[str, Trial]) -> None:
        self.run, self._make, self.room = run, make, room
        self._known = set(known)
        self._told = [as_told(e) for e in known.values() if e.result.state is not TrialState.OOM]
        self._narrowed = False
        self.searcher = make(self._told)
        self._pending: dict[str, PlannedTrial] = {}
        self._submitted: set[str] = set()
        self._ahead = 0.0 if self._whole else sum(cost_of(r.evaluation).tokens for r in run.replay)
        self._again = 0

    def to_the_end(self) -> None:
        """Go on until the effort is spent, time is up or the method has nothing left to propose.

        Raises:
            SearcherError: If the searcher breaks its contract.
            JournalError: If it asks otherwise than the journal was written.
        """
        run, planned = self.run, self.run.config.planned_cost
        while run.busy or self._spent < planned:
            if self._narrowed and not self._pending:
                self.searcher, self._narrowed = self._make(self._told), False
            if self.searcher is None:
                run.warn("the search was ended: the memory that is left holds no allocation of the space")
                return
            if run.replay and self._whole:
                ahead = run.replay[0]
                self._ask(ahead.workers, ahead.planned_cost - ahead.spent)
            else:
                self._ask(run.executor.workers, planned - self._spent)
            evaluation = self._next()
            if evaluation is None:
                return
            del self._pending[evaluation.spec.key]
            self._tell(evaluation)

    def _tell(self, evaluation: Trial) -> None:
        """Tell the searcher, or have it replaced where its proposal ran out of memory."""
        if self.room.ran_out(self.run, evaluation):
            self._narrowed = True
        if evaluation.result.state is not TrialState.OOM and self.searcher is not None:
            self._told.append(as_told(evaluation))
            self.searcher.tell(self._told[-1:])

    @property
    def _whole(self) -> bool:
        """Whether the journal holds every line that was written."""
        return not self.run.journal.content.damaged

    @property
    def _spent(self) -> float:
        """Training tokens that count as spent: of a journal that lost lines, not those of evaluations still ahead in
        it, so that what a damaged line held is done again even where the effort was spent to the end.

        They count once more new evaluations were asked for than lines were damaged: the search then goes another way.
        """
        if self._again > len(self.run.journal.content.damaged):
            self._ahead = 0.0
        return self.run.study.search_cost.tokens - self._ahead

    def _ask(self, workers: int, left: float) -> None:
        """Ask until ``workers`` evaluations are pending or will cost what is ``left`` to spend (training tokens); an
        evaluation that the engine had asked for is told at once."""
        run, searcher = self.run, self.searcher
        while searcher is not None and not self._narrowed and len(self._pending) < workers and self._expected() < left:
            run.progress("search", round(run.study.search_cost.tokens), round(run.config.planned_cost))
            proposals = searcher.ask(1)
            if not proposals:
                if not self._pending:
                    log.info("%s has nothing left to propose", searcher.name)
                return
            for proposal in proposals:
                wanted = PlannedTrial(self._request(searcher.name, proposal), proposal.fidelity, proposal.stage)
                found = run.study.find(wanted.spec.key)
                if found is not None and found.stage in ENGINE_STAGES:
                    self._tell(found)
                else:
                    self._pending[wanted.spec.key] = wanted

    def _expected(self) -> float:
        """What the pending evaluations cost from their first step on, in training tokens."""
        config = self.run.config
        return config.full_trial_tokens * sum(w.spec.steps for w in self._pending.values()) / config.high_steps

    def _request(self, name: str, proposal: Proposal) -> TrialSpec:
        """The request of a proposal that keeps the searcher's contract."""
        run, a, stage = self.run, proposal.allocation, proposal.stage
        low = proposal.fidelity is Fidelity.LOW
        if not run.parts.space.contains(a) or not self.room.rules.fits(a) or stage in ENGINE_STAGES \
                or (low and run.config.low_steps is None):
            raise SearcherError(
                f"{name} proposed {a.to_json()} at {proposal.fidelity.value} fidelity in stage {stage!r}: off the "
                f"ladders, over the budget of {self.room.rules.budget_bytes:,} bytes, at a fidelity that is off, or "
                "in a stage of the engine; this is a bug of the search method")
        request = run.spec(a, proposal.fidelity)
        if request.key in self._known:
            raise SearcherError(f"{run.config.method} proposed {request.key}, for which it had asked or of which it "
                                "had been told; this is a bug of the search method")
        self._known.add(request.key)
        return request

    def _next(self) -> Trial | None:
        """The next evaluation to tell: the journal's, or the next that ends; ``None`` where the search ends.

        Raises:
            JournalError: If the journal's next evaluation was not asked for: this program does not repeat that run.
                (Not where lines were damaged: what they held is done again, out of its order.)
        """
        run = self.run
        if self._whole and run.replay and run.replay[0].evaluation.spec.key not in self._pending:
            asked = ", ".join(self._pending) or "nothing"
            raise JournalError(
                f"the journal can't be continued: its next evaluation is {run.replay[0].evaluation.spec.key}, and "
                f"the search now asks for {asked}. It was written by version {run.study.header['version']}, this is "
                f"{qra_bo.__version__}: go on with the versions in its provenance, or start a new run with another "
                "out=")
        held = next((r for r in run.replay if r.evaluation.spec.key in self._pending), None)
        if held is not None:
            run.replay.remove(held)
            self._ahead = max(0.0, self._ahead - cost_of(held.evaluation).tokens)
            run.reset_stopwatch()
            return held.evaluation
        waiting = [w for key, w in self._pending.items() if key not in self._submitted]
        hours = run.config.max_hours
        if hours is None or run.hours < hours:
            self._again += len(waiting) if run.replay else 0
            for wanted in waiting:
                self._submitted.add(wanted.spec.key)
                run.submit(wanted)
        elif waiting and not run.busy:
            run.warn(f"the search was ended by max_hours={hours:g} at "
                     f"{run.study.search_cost.tokens / run.config.full_trial_tokens:.1f} of "
                     f"{run.config.max_full_trials:g} full-trial equivalents; a longer max_hours goes on")
        return run.next_finished() if run.busy else None


def as_told(e: Trial) -> Trial:
    """An evaluation of the search as a searcher sees it: the calibrated learning rate is its unit."""
    return replace(e, spec=replace(e.spec, lr_scale=1.0))
