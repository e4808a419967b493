"""The final fine-tune: of the winner, or of the next best allocation that measures within the budget."""

from collections.abc import Sequence
from pathlib import Path

from qra_bo.space import Allocation
from qra_bo.study.events import Final, Measured, Untuned
from qra_bo.study.state import UNTUNED
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.trials import TrialState
from qra_bo.utils.errors import OutputError

MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""
FINAL_FILES = ("adapter/adapter_model.safetensors", "quant_manifest.json")
"""What the final fine-tune leaves in the run's folder; it is trained again where one of these is gone."""


def evaluate_untuned(run: TrialRunner) -> None:
    """Evaluate the model before any training on the test split, once a run: what a result is compared with first."""
    if run.study.untuned is None:
        with run.stage(UNTUNED):
            run.record(Untuned(**run.executor.call("untuned", {"split": "test"}, run.progress)))
            run.reset_stopwatch()


def deliver(run: TrialRunner, winner: Allocation) -> Allocation:
    """Fine-tune the winner, unless the journal has its final fine-tune and the files are there; return what was
    delivered.

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
        "model_cfg": run.config.model}, run.progress)
    return Final(**final, winner=winner.fingerprint, delivered=allocation.fingerprint)
