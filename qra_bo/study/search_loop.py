"""The search of a run: ask, evaluate and tell, with as many proposals under way as there are workers.

A searcher's proposals depend on the order in which it is told of trials. The journal holds that order, and with
every trial how many were kept under way: a replay asks and tells as those sessions did, with any number of workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from qra_bo.memory.budget import smallest
from qra_bo.searchers.base import Forecasting, Recommending, Searcher, SearchProblem, SelfChecking
from qra_bo.space import Allocation, with_allowance
from qra_bo.study.cost import cost_of
from qra_bo.study.events import Stopped, SurrogateCheck
from qra_bo.study.setting import Headroom
from qra_bo.study.state import ENGINE_STAGES
from qra_bo.study.trial_runner import PlannedTrial, TrialRunner
from qra_bo.trials import Fidelity, Proposal, Trial, TrialState
from qra_bo.utils.errors import ContractError, JournalError
from qra_bo.utils.version import __version__

MakeSearcher = Callable[[SearchProblem], Searcher]


def asked_of(searcher: Searcher) -> list[Proposal]:
    """Return what a searcher proposes next; raises ``ContractError`` where that is no list of proposals."""
    found = searcher.ask(1)
    if isinstance(found, list | tuple) and all(
            isinstance(p, Proposal) and isinstance(p.fidelity, Fidelity) for p in found):
        return list(found)
    raise ContractError(f"{searcher.name}.ask must return a list of qra_bo.trials.Proposal, each with a Fidelity; got "
                        f"{found!r:.200}")


class SearchLoop:
    """The search of one session.

    The searcher observes the uniform baselines, those with ranks off the ladder too, but no trial that ran out of
    memory or measured above the budget: once nothing is pending any more, a new searcher with less memory replaces it
    and observes all other trials.

    ``problem`` is that within the whole budget; the searcher observes ``known`` trials without having asked for them.
    """

    def __init__(self, run: TrialRunner, headroom: Headroom, problem: SearchProblem, make_searcher: MakeSearcher,
                 known: Sequence[Trial]) -> None:
        self.run, self._headroom, self._problem, self._make_searcher = run, headroom, problem, make_searcher
        self._whole = not run.journal.content.damaged  # the journal holds every line that was written
        by_key = {e.spec.key: e for e in known}
        self._known = set(by_key)
        self._told = [run.study.observation(e) for e in by_key.values() if self._is_observation(e)]
        self._narrowed = self._stopped = False
        self._searcher = self._new_searcher()
        self._pending: dict[str, PlannedTrial] = {}
        self._submitted: set[str] = set()
        self._ahead = 0.0 if self._whole else sum(cost_of(trial).tokens for trial, *_ in run.replay)
        self._again = 0

    def _new_searcher(self) -> Searcher | None:
        """Return a searcher with the memory that is there; ``None`` where that holds no allocation."""
        problem, limit = self._problem, self._headroom.rules.budget_bytes
        costs = with_allowance(problem.costs, problem.budget_bytes - limit)
        if smallest(costs, problem.space)[0] > problem.budget_bytes:
            return None
        searcher = self._make_searcher(replace(problem, costs=costs))
        searcher.tell(self._told)
        return searcher

    def search(self) -> Searcher | None:
        """Go on until the effort is spent, time is up or the method has nothing left to propose; return the last
        searcher, or ``None`` where no memory was left for any.

        Raises:
            ContractError: If the searcher breaks its contract.
            JournalError: If it asks otherwise than the journal was written.
        """
        run, planned = self.run, self.run.setting.planned_cost
        while run.under_way or self._spent < planned:
            if self._narrowed and not self._pending:
                self._searcher, self._narrowed = self._new_searcher(), False
            if self._searcher is None:
                run.warn("the search was ended: the memory that is left holds no allocation of the space")
                break
            now = (run.executor.workers, planned - self._spent)
            self._ask(*(run.replay[0][1:] if run.replay and self._whole else now))
            if (trial := self._next()) is None:
                break
            del self._pending[trial.spec.key]
            self._tell(trial)
        for trial, *_ in run.replay:  # of an effort that was spent when the session began: not asked for again
            self._headroom.lower(trial)
        return self._searcher

    def _tell(self, trial: Trial) -> None:
        """Tell the searcher, or have it replaced where its proposal needed more memory than there is."""
        self._narrowed |= self._headroom.lower(trial)
        if self._is_observation(trial) and self._searcher is not None:
            self._told.append(self.run.study.observation(trial))
            self._searcher.tell(self._told[-1:])

    def _is_observation(self, trial: Trial) -> bool:
        """Whether a trial tells of losses, and not of the device's memory."""
        return trial.result.state is not TrialState.OOM and trial.within(self._problem.budget_bytes)

    @property
    def _spent(self) -> float:
        """Training tokens that count as spent.

        Of a journal that lost lines, those of trials still ahead in it do not count, so that the trial of a damaged
        line is done again even where the effort was spent to the end.
        """
        return self.run.study.search_cost.tokens - self._ahead

    def _ask(self, workers: int, left: float) -> None:
        """Ask until ``workers`` trials are pending or will cost what is ``left`` to spend (training tokens); a trial
        that the engine had planned before is told at once."""
        run, searcher, high = self.run, self._searcher, self.run.config.fidelity.high
        while searcher is not None and not self._narrowed and not self._stopped and len(self._pending) < workers:
            expected = sum(p.spec.steps for p in self._pending.values())
            if run.setting.full_trial_tokens * expected / high >= left:
                return
            run.progress("search (tokens)", round(run.study.search_cost.tokens), round(run.setting.planned_cost))
            proposals = asked_of(searcher)
            if not proposals:
                if not self._pending and all(trial.stage in ENGINE_STAGES for trial in run.study.trials):
                    run.warn(f"{searcher.name} proposed nothing at all, and the search was ended")
                return
            for proposal in proposals:
                planned = self._planned(searcher.name, proposal)
                if self._stops(searcher, planned):
                    return
                found = run.study.by_key.get(planned.spec.key)
                if found is not None and found.stage in ENGINE_STAGES:
                    self._tell(found)
                else:
                    self._pending[planned.spec.key] = planned

    def _stops(self, searcher: Searcher, planned: PlannedTrial) -> bool:
        """Return whether the search ends before ``planned``, and record it: no trial is likely to show a gain.

        A search that stopped here before stops again, whatever is pending; one with a lower ``effort.stop`` goes on,
        and so does one whose journal holds ``planned``, of an effort that went on.
        """
        run, least = self.run, self.run.config.effort.stop
        chance = searcher.chance_of_gain if isinstance(searcher, Forecasting) else None
        if least is None or chance is None or chance >= least:
            return False
        key, before = planned.spec.key, run.study.stopped
        if run.replay and (before is None or before.before != key
                           or any(trial.spec.key == key for trial, *_ in run.replay)):
            return False
        run.conclude(Stopped(key, chance, least))
        self._stopped = True
        return True

    def _broken(self, proposal: Proposal) -> str:
        """Return what of the searcher's contract a proposal breaks by itself; empty where nothing."""
        run, a, rules = self.run, proposal.allocation, self._headroom.rules
        if not run.setting.space.contains(a):
            return "is off the ladders"
        if not rules.fits(a):
            return f"needs {rules.predict_bytes(a):,} bytes, over the budget of {rules.budget_bytes:,}, or more bits"
        if proposal.stage in ENGINE_STAGES:
            return f"has the stage {proposal.stage!r}, a stage of the engine"
        if proposal.fidelity is Fidelity.LOW and run.config.fidelity.low is None:
            return "is at a fidelity that is off"
        return ""

    def _planned(self, name: str, proposal: Proposal) -> PlannedTrial:
        """Return the trial of a proposal that keeps the searcher's contract."""
        if not (wrong := self._broken(proposal)):
            planned = self.run.plan(proposal.allocation, proposal.stage, proposal.fidelity)
            if planned.spec.key not in self._known:
                self._known.add(planned.spec.key)
                return planned
        raise ContractError(f"{name} proposed {proposal.allocation.to_json()} ({proposal.fidelity.value} fidelity):"
                            f" it {wrong or 'had been proposed or been told of before'}; a bug of the search method")

    def _next(self) -> Trial | None:
        """Return the next trial to tell: the journal's, or the next that ends; ``None`` where the search ends.

        Raises ``JournalError`` if the journal's next trial was not asked for: this program does not repeat that run.
        (Not where lines were damaged: what they held is done again, out of its order.)
        """
        run, pending = self.run, self._pending
        if self._whole and run.replay and (key := run.replay[0][0].spec.key) not in pending:
            raise JournalError(
                f"the journal can't be continued: its next trial is {key}, and the search now asks for "
                f"{', '.join(pending) or 'nothing'}. It was written by version {run.study.header.version}, this is "
                f"{__version__}: go on with the versions in its provenance and a method that proposes the same after "
                "the same trials, or start a new run with another out=")
        held = next((r for r in run.replay if r[0].spec.key in pending), None)
        if held is not None:
            run.replay.remove(held)
            self._ahead = max(0.0, self._ahead - cost_of(held[0]).tokens)
            run.reset_stopwatch()
            return held[0]
        waiting = [p for key, p in pending.items() if key not in self._submitted]
        hours = run.config.max_hours
        if hours is None or run.search_seconds < 3600 * hours:
            self._again += len(waiting) if run.replay else 0
            if self._again > len(run.journal.content.damaged):  # more than was lost: the search goes another way
                self._ahead = 0.0
            for planned in waiting:
                self._submitted.add(planned.spec.key)
                run.submit(planned)
        elif waiting and not run.under_way:
            run.warn(f"the search was ended by max_hours={hours:g} at "
                     f"{run.study.search_cost.tokens / run.setting.full_trial_tokens:.1f} of "
                     f"{run.config.effort.max_full_trials:g} full-trial equivalents; a longer max_hours goes on")
        return run.next_finished() if run.under_way else None


def recommend(run: TrialRunner, searcher: Searcher) -> Sequence[Allocation]:
    """Return the allocations that a method recommends, if it does; record once how well its surrogate predicts.

    ``searcher`` is a new one: the searcher of the loop has not observed trials that an earlier session ended with.
    """
    searcher.tell([run.study.observation(e) for e in run.study.points])
    if isinstance(searcher, SelfChecking) and run.study.surrogate_check is None:
        check = searcher.surrogate_check()
        if check is not None:
            run.record(SurrogateCheck(**check))
    return searcher.recommend() if isinstance(searcher, Recommending) else ()
