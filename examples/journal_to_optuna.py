"""Copy a run's trials into an Optuna storage, for optuna-dashboard; may be repeated while the run goes on.

Needs ``pip install optuna optuna-dashboard``:
    python examples/journal_to_optuna.py outputs/first sqlite:///outputs/optuna.sqlite3
    optuna-dashboard sqlite:///outputs/optuna.sqlite3

Each unit has two parameters, its format and its rank. Trials of the search's objective are complete, those at low
fidelity pruned, those without a loss failed; other trials (confirmation, other learning rates) are left out.
"""

import sys
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from qra_bo.report import load_run

MOST_RANK = 1 << 20
"""Upper end of the rank axis: uniform baselines have ranks between and beyond those of the ladder."""


def copy_run(folder: Path, storage: str) -> optuna.Study:
    """Copy the trials that the study named after ``folder`` does not hold yet; returns that study."""
    run = load_run(folder)
    study = optuna.create_study(storage=storage, study_name=folder.resolve().name, load_if_exists=True)
    study.set_user_attr("winner", None if run.winner is None else run.winner.fingerprint)
    formats = CategoricalDistribution(sorted({f for e in run.study.trials for f in e.allocation.formats}
                                             | {f.name for f in run.header.formats}))
    ranks = IntDistribution(0, MOST_RANK)
    known = {trial.user_attrs["key"] for trial in study.get_trials(deepcopy=False)}
    points = {e.id for e in run.study.points}
    for e in run.study.trials:
        state = TrialState.COMPLETE if e.id in points else TrialState.FAIL if not e.ok else \
            TrialState.PRUNED if e.fidelity == "low" else None
        if state is None or e.spec.key in known:
            continue
        params, axes = dict[str, str | int](), dict[str, CategoricalDistribution | IntDistribution]()
        for unit, fmt, rank in zip(run.header.units, e.allocation.formats, e.allocation.ranks, strict=True):
            params |= {f"{unit} format": fmt, f"{unit} rank": rank}
            axes |= {f"{unit} format": formats, f"{unit} rank": ranks}
        study.add_trial(create_trial(
            state=state, value=e.loss, params=params, distributions=axes, intermediate_values=dict(e.result.curve),
            user_attrs={"key": e.spec.key, "stage": e.stage, "predicted_bytes": e.predicted_bytes,
                        "average_bits": run.average_bits(e.allocation), "message": e.result.message}))
    return study


if __name__ == "__main__":
    found = copy_run(Path(sys.argv[1]), sys.argv[2])
    print(f"{found.study_name}: {len(found.trials)} trials")
