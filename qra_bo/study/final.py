"""The final fine-tune: the winner is measured and trained; over the budget, the next best that fits takes its place."""

from collections.abc import Sequence
from pathlib import Path

from qra_bo.space import Allocation
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.trials import TrialState
from qra_bo.utils.errors import OracleError, OutputError

MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""
FINAL_FILES = ("adapter/adapter_model.safetensors", "quant_manifest.json")
"""What the final fine-tune leaves in the run's folder; it is trained again where one of these is gone."""


def deliver(run: TrialRunner, winner: Allocation) -> Allocation:
    """Fine-tune the winner, unless the journal has its final fine-tune and the files are there; return what was
    delivered.

    Raises:
        OutputError: If none of the best allocations measured within the budget.
        TrainingError: If the final training did not end well.
    """
    study, folder = run.study, run.journal.path.parent
    by_name = {e.allocation.fingerprint: e.allocation for e in study.points} | {winner.fingerprint: winner}
    final = study.last.get("final")
    if final is None and "end" in study.last:
        return winner  # it was ended without
    if final is None or not all((folder / name).is_file() for name in FINAL_FILES):
        first = winner if final is None else by_name.get(final["delivered"], winner)
        others = [e.allocation for e in study.ranked if e.allocation not in (winner, first)]
        with run.stage("final"):
            delivered = first_that_fits(run, [first, *others])
            fields = fine_tune(run, delivered, folder)
            run.record("final", {**fields, "adapter": "adapter", "winner": winner.fingerprint,
                                 "delivered": delivered.fingerprint})
        final = study.last["final"]
    if final["delivered"] not in by_name:
        raise OracleError(f"the final fine-tune delivered {final['delivered']}, which is no candidate of the run")
    return by_name[final["delivered"]]


def first_that_fits(run: TrialRunner, ranked: Sequence[Allocation]) -> Allocation:
    """Measure the peak of the best allocations in their order; return the first within the budget.

    Raises:
        OutputError: If none of ``MEASURED_CANDIDATES`` is.
    """
    budget, predict, seed = run.budget_bytes, run.setting.predictor, run.setting.train_seed
    for a in ranked[:MEASURED_CANDIDATES]:
        found = run.executor.call("measure_peak", {"allocation": a.to_json(), "train_seed": seed}, run.progress)
        measured, ran_out = found["measured_bytes"], found["state"] == TrialState.OOM.value
        fits = not ran_out and (measured is None or measured <= budget)
        run.record("measured", {"allocation": a.to_json(), "predicted_bytes": predict(a), "measured_bytes": measured,
                                "scope": run.config.memory.scope, "fits": fits, "peaks": found["peaks"]})
        if fits:
            return a
        how = f"did not fit on the device ({found['message']})" if ran_out else \
            f"measured {measured:,}: over the budget of {budget:,}"
        run.record("warning", {"message": f"{a.fingerprint} was predicted to need {predict(a):,} bytes and {how}; the "
                                          "next best is taken"})
    raise OutputError(f"none of the {MEASURED_CANDIDATES} best allocations measured within the budget of {budget:,} "
                      "bytes; the journal holds what each needs: raise the budget by that, or lower train.batch")


def fine_tune(run: TrialRunner, allocation: Allocation, folder: Path) -> dict[str, object]:
    """Train and save ``allocation`` in ``folder``; return its steps, held-out loss and standard error."""
    c = run.config
    final = run.executor.call("finalise", {
        "allocation": allocation.to_json(), "steps": c.final.steps, "epochs": c.final.epochs,
        "train_seed": run.setting.train_seed, "lr_scale": run.study.lr_scale, "out": str(folder),
        "model_cfg": c.model}, run.progress)
    return {key: final[key] for key in ("steps", "loss", "loss_se")}
