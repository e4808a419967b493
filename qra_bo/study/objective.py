"""The length of training whose loss a run minimises, and what carries the losses of shorter trials to it."""

from qra_bo.finetune.training.final import FinalSettings
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.rates.files import load_rates
from qra_bo.searchers.rates.model import change
from qra_bo.sensitivity.change import Change
from qra_bo.study.setting import FINAL
from qra_bo.study.trial_runner import TrialRunner


def settle_length(run: TrialRunner, problem: SearchProblem) -> None:
    """Record the length that the run minimises the loss of, where that is not the one of its trials.

    The event ``objective`` holds ``steps``, the steps ``before`` of a trial, and the ``change`` of losses between them
    (``Change``). There is none where ``search.length=trial``, nothing is fine-tuned at the end, or the final fine-tune
    is no longer than a trial.

    Raises:
        ConfigError: If the file of ``surrogate.rates`` can't be read or holds no prior.
    """
    config, before = run.config, problem.high_steps
    sequences = run.study.last.get("provenance", {}).get("train_sequences")
    if "objective" in run.study.last or config.search.length != FINAL or sequences is None:
        return
    steps = FinalSettings(**config.final.model_dump()).length(sequences, config.train.step_sequences)
    if steps > before:
        run.record("objective", {"steps": steps, "before": before,
                                 "change": _change(run, problem, before, steps).to_json()})


def change_after(run: TrialRunner, problem: SearchProblem, steps: int) -> Change | None:
    """Return what the length that is minimised changes in the losses of trainings of ``steps`` steps; ``None`` where
    these are as long."""
    wanted = run.study.objective_steps
    return None if steps >= wanted else _change(run, problem, steps, wanted)


def _change(run: TrialRunner, problem: SearchProblem, before: int, after: int) -> Change:
    return change(load_rates(run.config.surrogate.rates), problem, before, after)
