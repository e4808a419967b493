"""The run, from profile to winner: a deterministic program over the journal, and the only caller of oracles."""

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qra_bo.execution.base import Executor
from qra_bo.memory.budget import space_of
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.searchers.base import Recommending, SelfChecking
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import load_rates, of_training
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation
from qra_bo.study import baselines
from qra_bo.study.confirmation import confirm, settle_length
from qra_bo.study.events import End, Final, Measured, Untuned
from qra_bo.study.journal import Journal, session_seconds
from qra_bo.study.results import write_best
from qra_bo.study.search_loop import MakeSearcher, SearchLoop, recommend
from qra_bo.study.setting import Headroom, Setting
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.study.state import COMPARISON, ENGINE_STAGES, UNTUNED, Study
from qra_bo.study.trial_runner import Listener, TrialRunner, no_loss
from qra_bo.trials import Trial, TrialState
from qra_bo.utils.errors import ContractError, OutputError

MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""
FINAL_FILES = ("adapter/adapter_model.safetensors", "quant_manifest.json")
"""What the final fine-tune leaves in the run's folder; it is trained again where one of these is gone."""


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to.

    Args:
        winner: The allocation that is delivered.
        exit_status: 0, or 3 where the first winner measured over the budget and the next best that fits was taken.
        best: The contents of ``best.json``.
        found: The best trial of the search: the one that its method recommends first, else the one with least loss;
            ``None`` where nothing was searched.
    """

    winner: Allocation
    exit_status: int
    best: Mapping[str, Any]
    study: Study
    found: Trial | None


class Engine:
    """One run; ``run`` starts it or continues the one in its folder.

    Args:
        folder: The run's folder; made if it is absent.
        budget_bytes: Hard limit on predicted bytes.
        executor: Runs the oracle; the engine closes it.
        fine_tunes: Whether the winner is fine-tuned and saved at the end; needs an oracle that trains.
        listeners: Each gets every journal event, those of earlier sessions first.
    """

    def __init__(self, folder: Path, setting: Setting, budget_bytes: int, executor: Executor,
                 make_searcher: MakeSearcher, *, fine_tunes: bool, listeners: Sequence[Listener] = (),
                 progress: Progress = quiet) -> None:
        self.folder, self.setting, self.config = folder, setting, setting.config
        self.budget_bytes, self.executor, self.fine_tunes = budget_bytes, executor, fine_tunes
        self._make_searcher, self._listeners, self._progress = make_searcher, listeners, progress

    def run(self) -> RunOutcome:
        """Run to the end, and leave the folder's journal clean however it ends.

        Raises:
            UserError: If the folder, its journal, the model or the data can't be used, or no training gave a loss.
            RunInterrupted: On a signal that stops a run.
            QRABOError: If the worker could not be started, or a searcher or oracle broke its contract.
        """
        with self._session() as run:
            if self.fine_tunes and run.study.untuned is None:  # what a result is compared with first
                with run.stage(UNTUNED):
                    run.record(Untuned(**run.executor.call("untuned", {"split": "test"}, run.progress)))
                    run.reset_stopwatch()
            if (given := self.setting.given) is not None:
                baselines.calibrate_given(run, given)
                for note in given.notes:
                    run.warn(note)
                return self._finish(run, ())
            effort, headroom = self.config.effort, Headroom(self.setting.rules(self.budget_bytes), run.warn)
            begun = run.study.begun  # a method divides the effort that the search was started with
            with run.stage("profile"):
                problem = self.setting.problem(self.budget_bytes, self._profile(run),
                                               0.0 if begun is None else begun.max_full_trials)
            settle_length(run, problem)
            problem = replace(problem, objective_steps=run.study.objective_steps)
            rates = of_training(load_rates(self.config.surrogate.rates), problem, run.study.objective_steps)
            uniforms = baselines.uniform_choices(headroom.rules, problem, rates)
            fractional = baselines.fractional_choices(problem, rates)
            choices = baselines.in_turn(uniforms, fractional)
            searched = run.study.end is not None or any(e.stage not in ENGINE_STAGES for e in run.study.trials)
            if begun is None or not (effort.max_full_trials or searched):  # what stopped before its first proposal
                from qra_bo.study.prediction import predict  # loads torch, which planning does without
                if run.study.prediction is None or run.study.learning_rate is None:
                    seen = Observations(problem)  # a rank may be off the ladder
                    uniform = next((a for a in uniforms if seen.position(a) is not None), None)
                    with run.stage(COMPARISON):
                        baselines.calibrate_check(run, uniform or uniforms[0], rates.lr_scale)
                        predict(run, problem, uniform, fractional)
                return self._finish(run, ())
            limit, begun_with_references = begun.uniform_baselines, begun.references
            with run.stage("calibration"):
                baselines.calibrate(run, uniforms)
            method = pkgutil.resolve_name(self.config.method.target["_target_"])
            beside = "reference" if getattr(method, "published", False) else "baseline"  # whose winner is its own
            with run.stage("baseline"):
                known = baselines.evaluate_baselines(run, headroom, choices[:limit], fractional_as=beside)
            if begun_with_references:  # the searcher observes those that are feasible
                with run.stage("reference"):
                    known += baselines.evaluate_references(run, headroom)
            with run.stage("search"):
                searcher = SearchLoop(run, headroom, problem, self._make_searcher, known).search()
            if limit is not None and (effort.uniform_baselines is None or effort.uniform_baselines > limit):
                # a longer effort asks for baselines that the first one left out
                baselines.evaluate_baselines(run, headroom, choices[:effort.uniform_baselines], fractional_as=beside)
            if effort.references and not begun_with_references:
                with run.stage("reference"):
                    baselines.evaluate_references(run, headroom)
            checks = isinstance(searcher, (SelfChecking, Recommending))  # of all points: a later one outdates the check
            recommended = recommend(run, self._make_searcher(problem)) if checks else ()
            if self.config.confirm.seeds and effort.max_full_trials:
                with run.stage("confirmation"):
                    confirm(run, problem, recommended)
            return self._finish(run, recommended)

    @contextmanager
    def _session(self) -> Iterator[TrialRunner]:
        """Open the run's folder and journal; at the end close them and the executor, and write ``status.json``."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {self.folder} can't be made ({error.strerror}); choose another with "
                              "out=") from error
        with closing(self.executor), Interrupts() as interrupts, Journal(self.folder, interrupts.shield) as journal:
            run = TrialRunner(self.setting, self.budget_bytes, journal, self.executor, self._listeners, self._progress)
            run.begin()
            try:
                yield run
            except (Exception, RunInterrupted) as error:
                state = "interrupted" if isinstance(error, RunInterrupted) else "failed"
                run.status.write(state, str(error))  # first: a second signal may come at once
                with suppress(OutputError):  # which may be the error itself
                    run.mark_time()
                raise
            run.status.stage = "end"
            run.status.write("done")

    def _profile(self, run: TrialRunner) -> SensitivityProfile:
        """Return the journal's profile; a new one is measured."""
        if run.study.profile is None:
            run.record(self.executor.profile(run.progress))
            run.reset_stopwatch()
        assert run.study.profile is not None
        profile, space = run.study.profile.profile, self.setting.space
        units, formats = tuple(u.name for u in space.units), tuple(f.name for f in space.formats)
        if profile.units != units or profile.formats != formats:
            raise ContractError(f"the profile must be of the {len(units)} units and the formats {list(formats)} of the "
                                f"space, got {len(profile.units)} units and {list(profile.formats)}")
        return profile

    def _finish(self, run: TrialRunner, recommended: Sequence[Allocation]) -> RunOutcome:
        """Fine-tune the winner where that is asked for, and write ``best.json``."""
        study, winner = run.study, run.study.winner
        found = next(filter(None, map(study.point, recommended)), study.incumbent)
        if winner is None or (found is None and not study.untried):
            raise no_loss("no trial within the budget gave a loss", study.trials)
        delivered = deliver(run, winner) if self.fine_tunes else winner
        if study.prediction is not None and self.config.effort.references:
            baselines.train_qlora(run)
        if study.end is None:
            wall = session_seconds(run.journal.content.events) + run.journal.elapsed
            memory, priced = self.setting.memory, space_of(self.setting.space, delivered)
            run.record(End("done" if delivered == winner else "next_best", delivered.fingerprint, round(wall, 3),
                           round(study.overhead_seconds, 3), self.setting.predictor(delivered),
                           memory.breakdown(priced, delivered), memory.file_bytes(priced, delivered)))
        best = write_best(self.folder, study)
        status = 0 if study.end is not None and study.end.status == "done" else 3
        return RunOutcome(delivered, status, best, study, found)


def deliver(run: TrialRunner, winner: Allocation) -> Allocation:
    """Fine-tune the winner, unless the journal has its final fine-tune and files are there; return the delivered one.

    Raises:
        OutputError: If none of the best allocations measured within the budget.
        TrainingError: If the final training did not end well.
    """
    study, folder = run.study, run.journal.path.parent
    candidates = study.untried or tuple(e.allocation for e in study.ranked)
    by_name = {a.fingerprint: a for a in (*candidates, winner)}
    final = study.final
    if final is None and study.end is not None:
        return winner  # it was ended without
    if final is None or not all((folder / name).is_file() for name in FINAL_FILES):
        first = winner if final is None else by_name.get(final.delivered, winner)
        others = [a for a in candidates if a not in (winner, first)]
        with run.stage("final"):
            final = fine_tune(run, first_that_fits(run, [first, *others]), winner, folder)
            run.record(final)
            run.forget_checkpoints()
    return by_name[final.delivered]


def first_that_fits(run: TrialRunner, ranked: Sequence[Allocation]) -> Allocation:
    """Measure the peak of the best allocations in their order; return the first within the budget. Raises
    ``OutputError`` if none of ``MEASURED_CANDIDATES`` is."""
    budget, predict, seed = run.budget_bytes, run.setting.predictor, run.setting.train_seed
    candidates = ranked[:MEASURED_CANDIDATES]
    for a in candidates:
        found = run.executor.call("measure_peak", {"allocation": a.to_json(), "train_seed": seed}, run.progress)
        measured, ran_out = found["measured_bytes"], found["state"] == TrialState.OOM.value
        fits = not ran_out and (measured is None or measured <= budget)
        run.record(Measured(a, predict(a), measured, run.config.memory.scope, fits, found["peaks"]))
        if fits:
            return a
        how = f"did not fit on the device ({found['message']})" if ran_out else \
            f"measured {measured:,}: over the budget of {budget:,}"
        after = "" if a == candidates[-1] else "; the next best is taken"
        run.warn(f"{a.fingerprint} was predicted to need {predict(a):,} bytes and {how}{after}")
    what = "the only allocation did not measure" if len(candidates) == 1 else \
        f"none of the {len(candidates)} best allocations measured"
    raise OutputError(f"{what} within the budget of {budget:,} bytes; the journal holds what each needs: raise the "
                      "budget by that, or lower train.batch")


def fine_tune(run: TrialRunner, allocation: Allocation, winner: Allocation, folder: Path) -> Final:
    """Train and save ``allocation``, which stands in for ``winner`` where that measured over the budget."""
    final = run.executor.call("finalise", {
        "allocation": allocation.to_json(), "options": run.config.final.model_dump(),
        "train_seed": run.setting.train_seed, "learning_rate": run.study.learning_rate,
        "out": str(folder.absolute()),  # a worker of a cluster has another working directory
        "model_cfg": run.config.model}, run.progress, run.config.final_workers)
    return Final(**final, winner=winner.fingerprint, delivered=allocation.fingerprint)
