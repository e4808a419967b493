"""The run, from profile to winner: a deterministic program over the journal, and the only caller of oracles."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qra_bo.execution.messages import ProfileResult
from qra_bo.memory.formats import parse_format
from qra_bo.searchers.base import Recommending, Searcher, SearchProblem, SelfChecking
from qra_bo.space import Allocation, average_bits
from qra_bo.study.calibration import best_scale, calibration_choices
from qra_bo.study.confirm import Confirmation, paired_interval, spearman
from qra_bo.study.headroom import Headroom
from qra_bo.study.journal import Journal
from qra_bo.study.options import Delivery, EngineConfig, FinalTask, Parts
from qra_bo.study.results import write_best
from qra_bo.study.runner import PlannedTrial, Runner
from qra_bo.study.searching import Search, as_told
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.study.state import Study, loss_of
from qra_bo.study.status import StatusFile
from qra_bo.study.uniform_baselines import BaselineRules, choose, fill, uniform_baselines
from qra_bo.trials import Fidelity, Trial, TrialState
from qra_bo.utils.errors import OracleError, OutputError, QRABOError, TrainingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to.

    Args:
        winner: The allocation that is delivered.
        exit_status: 0, or 3 where the first winner measured over the budget and the next best that fits was taken.
        best: The contents of ``best.json``.
        study: Everything behind it.
        found: What the search came to: the point that its method recommends first, else the one with the least loss.
    """

    winner: Allocation
    exit_status: int
    best: Mapping[str, Any]
    study: Study
    found: Trial


class Engine:
    """One run; ``run`` starts it or continues what its folder holds.

    Args:
        config: The run.
        parts: What it is connected to.
    """

    def __init__(self, config: EngineConfig, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.room = Headroom(BaselineRules(
            parts.space.n_units, tuple(f.name for f in parts.space.formats), config.max_rank, config.budget_bytes,
            parts.predict_bytes, self._admits))

    @property
    def rules(self) -> BaselineRules:
        """What fits, as far as is known."""
        return self.room.rules

    def _admits(self, allocation: Allocation) -> bool:
        """Whether its average bits are within the limit on them, where there is one."""
        limit = self.config.max_average_bits
        bits = [parse_format(f).bits for f in allocation.formats]
        return limit is None or average_bits(bits, self.parts.space.unit_numel) <= limit

    def run(self) -> RunOutcome:
        """Run to the end, and leave the folder's journal clean however it ends.

        Raises:
            UserError: If the folder, its journal, the model or the data can't be used, or no training gave a loss.
            RunInterrupted: On SIGINT or SIGTERM.
            QRABOError: If the worker could not be started, or a part broke its contract.
        """
        folder = self.config.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {folder} can't be made ({error.strerror}); choose another with "
                              "out=") from error
        try:
            with Interrupts() as interrupts, Journal(folder, interrupts.shield) as journal:
                return self._session(Runner(self.config, self.parts, journal, StatusFile(folder)))
        finally:
            self.parts.executor.close()

    def _session(self, run: Runner) -> RunOutcome:
        run.open_run()
        try:
            outcome = self._program(run)
        except RunInterrupted as stop:
            run.status.write(run.study, "interrupted", str(stop))
            raise
        except Exception as error:
            run.status.write(run.study, "failed", str(error))
            raise
        run.status.stage = "end"
        run.status.write(run.study, "done")
        return outcome

    def _program(self, run: Runner) -> RunOutcome:
        problem = self._problem(run)
        anchors = uniform_baselines(self.rules, problem.profile)
        limit = run.study.header["uniform_baselines"]
        with run.stage("calibration"):
            self._calibrate(run, anchors)
        with run.stage("baseline"):
            baselines = self._anchors(run, anchors, limit)
        if self.config.references or self.config.rtn_references:
            with run.stage("reference"):
                baselines += self._references(run)
        with run.stage("search"):
            searcher = self._search(run, problem, baselines)
            believed: Sequence[Allocation] = ()
            if searcher is not None and isinstance(searcher, (SelfChecking, Recommending)):
                believed = self._believed(run, problem)
        if limit is not None and (self.config.uniform_baselines is None or self.config.uniform_baselines > limit):
            self._anchors(run, anchors, self.config.uniform_baselines)  # a longer effort asks for uniform baselines the first one left out
        if self.config.confirm_seeds:
            with run.stage("confirmation"):
                self._confirm(run, believed)
        if self.config.rate_factors and self.config.confirm_seeds:
            with run.stage("rate_check"):
                self._check_rates(run)
        if self.config.ranking_top >= 2:
            with run.stage("ranking_check"):
                self._check_ranking(run)
        return self._conclude(run, believed)

    def _problem(self, run: Runner) -> SearchProblem:
        """The search problem over the journal's profile, or a new one."""
        with run.stage("profile"):
            if "profile" not in run.study.last:
                run.record("profile", self.parts.executor.profile(run.progress).to_json())
                run.reset_stopwatch()
        profile = ProfileResult.from_json(run.study.last["profile"]).profile
        units, formats = tuple(u.name for u in self.parts.space.units), self.rules.formats
        if profile.units != units or profile.formats != formats:
            raise OracleError(f"the profile must be of the {len(units)} units and the formats {list(formats)} of the "
                              f"space, got {len(profile.units)} units and {list(profile.formats)}")
        return self.parts.make_problem(profile)

    def _calibrate(self, run: Runner, anchors: Sequence[Allocation]) -> None:
        """Choose the factor on the learning rate from trials on uniform choices (see ``calibration``).

        Raises:
            TrainingError: If no factor gave a loss.
        """
        if run.study.lr_scale is not None and not run.journal.content.damaged:
            return
        scales, trials = self.config.lr_scales, []
        chosen = calibration_choices(anchors[0], self.config.calibration_baselines)
        tried = scales if len(scales) > 1 else ()
        done = run.evaluate_all([PlannedTrial(run.spec(a, Fidelity.HIGH, lr_scale=scale), Fidelity.HIGH, "calibration")
                                 for scale in tried for a in chosen])
        if run.study.lr_scale is not None:  # what damaged lines held is done again
            return
        for i, scale in enumerate(tried):
            of_scale = done[i * len(chosen):(i + 1) * len(chosen)]
            if all(e.ok for e in of_scale):
                trials.append((scale, sum(map(loss_of, of_scale)) / len(chosen)))
        if len(scales) > 1 and not trials:
            raise _no_loss("no learning rate of the calibration gave a loss on the uniform baselines",
                           run.study.trials)
        best, inside = best_scale(sorted(trials)) if trials else (scales[0], True)
        if not inside:
            run.warn(f"the best factor on the learning rate, {best:g}, is at the end of those tried {list(scales)}; "
                     "calibrate.lr_scales may be too narrow")
        run.record("calibration", {"lr": self.config.base_lr * best, "rule": self.config.lr_rule, "lr_scale": best,
                                   "trials": [{"lr_scale": s, "loss": loss} for s, loss in trials],
                                   "uniform_baselines": [a.to_json() for a in chosen]})

    def _anchors(self, run: Runner, anchors: Sequence[Allocation], limit: int | None) -> list[Trial]:
        """Evaluate the most promising uniform choices and *uniform filled*; those that gave a loss or failed, in order.

        Raises:
            TrainingError: If every one of them ran out of memory or diverged.
            QRABOError: If every one of them failed: there is nothing to compare with, and likely something broken.
        """
        first, spare = choose(anchors, limit)
        done = self._baselines(run, first)
        usable = [e for e in done if e.ok]
        if not usable:
            raise _no_loss("every uniform baseline failed, so that nothing can be compared", done)
        filled = fill(self.rules, min(usable, key=loss_of).allocation)
        if filled not in {e.allocation for e in done}:
            if limit != 1:
                done += self._baselines(run, [filled])
        elif spare:
            done += self._baselines(run, spare[:1])
        return done

    def _baselines(self, run: Runner, allocations: Sequence[Allocation]) -> list[Trial]:
        """Anchors' evaluations; one that the calibration made counts as a baseline."""
        found = run.evaluate_all([PlannedTrial(run.spec(a, Fidelity.HIGH), Fidelity.HIGH, "baseline")
                                  for a in allocations])
        for e in found:
            self.room.ran_out(run, e)
        return [replace(e, stage="baseline") for e in found]

    def _references(self, run: Runner) -> list[Trial]:
        """Evaluate the references. One that fits and is made of the search's formats and codes is a uniform choice like
        any other and is returned; the others are never incumbent."""
        given = self.config.references
        ordinary = [set(a.formats) <= set(self.rules.formats) and self.rules.fits(a) for a in given]
        others = [PlannedTrial(replace(run.spec(a, Fidelity.HIGH), codes="rtn"), Fidelity.HIGH, "reference")
                  for a in self.config.rtn_references]
        found = run.evaluate_all([*(
            PlannedTrial(run.spec(a, Fidelity.HIGH), Fidelity.HIGH, "baseline" if o else "reference")
            for a, o in zip(given, ordinary, strict=True)), *others])
        return [replace(e, stage="baseline") for e, o in zip(found, ordinary, strict=False) if o]

    def _search(self, run: Runner, problem: SearchProblem, known: Sequence[Trial]) -> Searcher | None:
        """Search until the effort is spent, time is up or the method has nothing left to propose; returns the searcher,
        if memory was left for any.

        The searcher is told of all uniform baselines, those with ranks between two of the ladder too: it may learn from them.
        What runs out of memory it is not told: a new one takes over, which has less memory and knows all the rest.
        """
        def make(told: Sequence[Trial]) -> Searcher | None:
            within = self.room.within(problem)
            if within is None:
                return None
            searcher = self.parts.make_searcher(within, float(run.study.header["max_full_trials"]))
            searcher.tell(told)
            return searcher

        search = Search(run, make, self.room, {e.spec.key: e for e in known})
        search.to_the_end()
        return search.searcher

    def _believed(self, run: Runner, problem: SearchProblem) -> Sequence[Allocation]:
        """What the method recommends, if it does; and, once for a search and for its extension, how well its surrogate
        predicts what the journal holds.

        A new searcher is asked: the one that searched knows nothing of evaluations that an earlier session ended with.
        """
        searcher = self.parts.make_searcher(problem, float(run.study.header["max_full_trials"]))
        searcher.tell([as_told(e) for e in run.study.points])
        if isinstance(searcher, SelfChecking) and "surrogate_check" not in run.study.last:
            check = searcher.surrogate_check()
            if check is not None:
                run.record("surrogate_check", check)
        return searcher.recommend() if isinstance(searcher, Recommending) else ()

    def _confirm(self, run: Runner, recommended: Sequence[Allocation]) -> None:
        """Compare the best mixed allocation with the best uniform one: unseen training seeds, test split.

        The best is the first mixed one that the method recommends, else the one with the least loss seen.
        """
        study = run.study
        points = [study.point(a) for a in recommended]
        reference = study.best_uniform
        mixed = next((p for p in points if p is not None and not study.counts_as_uniform(p)), study.best_mixed)
        if reference is None:
            raise _no_loss("no uniform choice gave a loss, so that nothing can be confirmed", study.trials)
        candidate = reference if mixed is None else mixed
        both = self._unseen(run, candidate.allocation, reference.allocation, "confirmation")
        failed = any(r.ok and not c.ok for _, c, r in both)
        pairs = [(seed, c.loss, r.loss) for seed, c, r in both if c.loss is not None and r.loss is not None]
        if len(pairs) < 2:
            run.warn("fewer than two training seeds of the confirmation gave a loss for both allocations: the winner "
                     "is not confirmed")
            return
        seeds, ours, theirs = zip(*pairs, strict=True)
        run.record_conclusion("confirmation", Confirmation(
            candidate.allocation, reference.allocation, seeds, ours, theirs, failed).to_json())

    def _unseen(self, run: Runner, candidate: Allocation, reference: Allocation, stage: str,
                lr_scale: float | None = None) -> list[tuple[int, Trial, Trial]]:
        """Both allocations on every unseen training seed and the test split: the seed, and either's evaluation."""
        done = run.evaluate_all([
            PlannedTrial(run.spec(a, Fidelity.HIGH, lr_scale=lr_scale, train_seed=seed, split="test"), Fidelity.HIGH,
                   stage) for seed in self.config.confirm_seeds for a in (candidate, reference)])
        return list(zip(self.config.confirm_seeds, done[::2], done[1::2], strict=True))

    def _check_rates(self, run: Runner) -> None:
        """Whether the confirmation's difference holds at other learning rates than the calibrated one."""
        confirmation, calibrated = run.study.last.get("confirmation"), run.study.lr_scale
        if confirmation is None or calibrated is None or confirmation["candidate"] == confirmation["reference"]:
            return
        candidate, reference = (Allocation.from_json(confirmation[side]) for side in ("candidate", "reference"))
        rates = []
        for factor in self.config.rate_factors:
            both = self._unseen(run, candidate, reference, "rate_check", factor * calibrated)
            pairs = [(seed, c.loss, r.loss) for seed, c, r in both if c.loss is not None and r.loss is not None]
            if len(pairs) < 2:
                run.warn(f"fewer than two training seeds gave a loss for both allocations at {factor:g} times the "
                         "calibrated learning rate")
                continue
            interval = paired_interval([c - r for _, c, r in pairs])
            rates.append({"factor": factor, "train_seeds": [seed for seed, _, _ in pairs],
                          "candidate_losses": [c for _, c, _ in pairs], "reference_losses": [r for _, _, r in pairs],
                          "mean": interval.mean, "low": interval.low, "high": interval.high})
        run.record_conclusion("rate_check", {"candidate": confirmation["candidate"],
                                             "reference": confirmation["reference"], "rates": rates})

    def _check_ranking(self, run: Runner) -> None:
        """Whether the ranking of the best allocations holds at a longer training."""
        factor = self.config.ranking_factor
        top = run.study.ranked[:self.config.ranking_top]
        longer = zip(top, run.evaluate_all([
            PlannedTrial(run.spec(e.allocation, Fidelity.HIGH, factor=factor), Fidelity.HIGH, "ranking_check")
            for e in top]), strict=True)
        finished = [(e, long) for e, long in longer if long.ok]
        search_losses, losses = [loss_of(e) for e, _ in finished], [loss_of(long) for _, long in finished]
        if len(finished) < 2:
            run.warn("the ranking check has fewer than two losses to compare")
            return
        run.record_conclusion("ranking_check", {
            "steps": self.config.high_steps * factor, "fingerprints": [e.allocation.fingerprint for e, _ in finished],
            "losses": losses, "search_losses": search_losses, "spearman": spearman(search_losses, losses)})

    def _conclude(self, run: Runner, recommended: Sequence[Allocation]) -> RunOutcome:
        """Hand the winner over, and write down what is delivered."""
        winner = run.study.winner
        points = (run.study.point(a) for a in recommended)
        found = next((p for p in points if p is not None), run.study.incumbent)
        if winner is None or found is None:
            raise _no_loss("no evaluation within the budget gave a loss", run.study.trials)
        delivered = self._deliver(run, winner)
        if "end" not in run.study.last:
            self._fold(run)
            run.record("end", {
                "status": "done" if delivered == winner else "next_best", "best": delivered.fingerprint,
                "wall_seconds": round(run.wall_seconds, 3), "overhead_seconds": round(run.study.overhead_seconds, 3),
                "predicted_bytes": self.parts.predict_bytes(delivered),
                "breakdown": {k: int(v) for k, v in self.parts.breakdown(delivered).items()}})
        best = write_best(self.config.folder, run.study)
        return RunOutcome(delivered, 0 if run.study.last["end"]["status"] == "done" else 3, best, run.study,
                          found)

    def _fold(self, run: Runner) -> None:
        """Fold what was measured since the last time into what is known of the device."""
        last = int(run.study.last.get("allowance", {}).get("last_id", 0))
        new = [e for e in run.study.trials if e.id > last]
        found = self.parts.fold(new) if self.parts.fold is not None and new else None
        if found is not None:
            run.record("allowance", {**found, "last_id": new[-1].id})

    def _deliver(self, run: Runner, winner: Allocation) -> Allocation:
        """The final fine-tune, unless the journal holds one of this winner and its files are there; what was
        delivered."""
        by_name = {e.allocation.fingerprint: e.allocation for e in run.study.points}
        by_name[winner.fingerprint] = winner
        final = run.study.last.get("final")
        new = final is None and "end" not in run.study.last
        if self.parts.finalise is not None and (new or (final is not None and not self.parts.is_kept())):
            first = winner if final is None else by_name.get(final["delivered"], winner)
            others = tuple(e.allocation for e in run.study.ranked if e.allocation not in (winner, first))
            with run.stage("final"):
                lr_scale = run.study.lr_scale
                if lr_scale is None:
                    raise OracleError("the learning rate must be calibrated before the final fine-tune")
                delivery: Delivery = self.parts.finalise(
                    FinalTask((first, *others), lr_scale, self.parts.executor, run.record, run.progress))
                run.record("final", {"steps": delivery.steps, "loss": delivery.loss, "loss_se": delivery.loss_se,
                                     "adapter": delivery.adapter, "winner": winner.fingerprint,
                                     "delivered": delivery.allocation.fingerprint})
            final = run.study.last["final"]
        if final is None:
            return winner
        if final["delivered"] not in by_name:
            raise OracleError(f"the final fine-tune delivered {final['delivered']}, which is no candidate of the run")
        return by_name[final["delivered"]]


def _no_loss(what: str, evaluations: Sequence[Trial]) -> QRABOError:
    """The error of a run that can't go on without a loss: the user's to mend where trainings diverged or memory ran
    out, else a bug. It tells the last three reasons."""
    failed = [e.result for e in evaluations if not e.ok]
    reasons = "; ".join(list(dict.fromkeys(f"{m.state.value}: {m.message}" for m in failed))[-3:])
    if any(m.state is TrialState.FAILED for m in failed):
        return QRABOError(f"{what}; {reasons}")
    return TrainingError(f"{what}; {reasons}. Lower adapter.lr where trainings diverge; where memory ran out, lower "
                         "train.batch or the budget, or use a larger device")
