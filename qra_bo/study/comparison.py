"""Comparison of a predicted allocation with the best uniform choice, QLoRA and the untuned model, on one training seed.

One seed decides nothing: there is no interval and no verdict. All losses are of the test split, after a trial's steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qra_bo.memory.formats import default_format
from qra_bo.space import Allocation, uniform
from qra_bo.study.state import COMPARISON, Study
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.trials import Trial, rounding_of

UNTUNED, UNIFORM, QLORA = "untuned", "uniform", "qlora"
"""What a predicted allocation can be compared with (``effort.compare``)."""
QLORA_RANK = 16


@dataclass(frozen=True)
class Compared:
    """What was trained beside a predicted allocation so far; ``None`` where it was not, or gave no loss.

    Args:
        predicted: Trial of the predicted allocation.
        uniform: Trial of the best uniform choice as predicted.
        qlora: Trial of QLoRA, which need not fit the budget.
        untuned: Test loss of the model in 16 bits without adapters (nats).
    """

    predicted: Trial | None
    uniform: Trial | None
    qlora: Trial | None
    untuned: float | None

    @property
    def difference(self) -> float | None:
        """Loss of the predicted allocation less that of the uniform choice (nats)."""
        if self.predicted is None or self.uniform is None:
            return None
        return float(self.predicted.loss or 0.0) - float(self.uniform.loss or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return losses and difference (nats), with the one seed, split and steps that all of them share."""
        trials = {"predicted": self.predicted, UNIFORM: self.uniform, QLORA: self.qlora}
        spec = next((trial.spec for trial in trials.values() if trial is not None), None)
        return {"difference": self.difference, UNTUNED: self.untuned,
                **{name: None if trial is None else trial.loss for name, trial in trials.items()},
                "train_seeds": 1, "train_seed": None if spec is None else spec.train_seed,
                "steps": None if spec is None else spec.steps, "metric": "test_loss"}


def compare(run: TrialRunner) -> None:
    """Train the predicted allocation and evaluate before it what ``effort.compare`` names but for QLoRA.

    The predicted allocation comes last: a final fine-tune of that length continues its training at its end.
    """
    wanted, prediction = run.config.effort.compare, run.study.last["prediction"]
    with run.stage(COMPARISON):
        if UNTUNED in wanted and UNTUNED not in run.study.last:
            run.record(UNTUNED, run.executor.call("untuned", {"split": "test"}, run.progress))
        sides = [prediction["allocations"][0]]
        if UNIFORM in wanted and prediction["reference"] not in (None, *sides):
            sides.insert(0, prediction["reference"])
        run.evaluate_all([run.plan(Allocation.from_json(a), COMPARISON, split="test") for a in sides])


def compare_qlora(run: TrialRunner) -> None:
    """Train QLoRA where ``effort.compare`` names it: after the final fine-tune, for which nobody should wait longer."""
    if QLORA in run.config.effort.compare and "prediction" in run.study.last:
        with run.stage("reference"):
            run.reset_stopwatch()  # the final fine-tune is no time of the search
            allocation, codes = _qlora(run.study)
            planned = run.plan(allocation, COMPARISON, split="test", codes=codes)
            is_new = planned.spec.key not in run.study.by_key
            run.evaluate_all([planned])
            if is_new and "final" in run.study.last:
                run.forget_checkpoints()


def compared(study: Study) -> Compared | None:
    """Return the comparison of the predicted allocation so far; ``None`` where nothing was predicted or compared."""
    prediction: Mapping[str, Any] | None = study.last.get("prediction")
    trials = [e for e in study.trials if e.stage == COMPARISON and e.ok]
    if prediction is None or not (trials or UNTUNED in study.last):
        return None

    def trial(allocation: Allocation, codes: str | None = None) -> Trial | None:
        return next((e for e in trials if e.allocation == allocation and e.spec.codes == codes), None)

    predicted = trial(Allocation.from_json(prediction["allocations"][0]))
    best = None if prediction["reference"] is None else trial(Allocation.from_json(prediction["reference"]))
    untuned = study.last.get(UNTUNED)
    return Compared(predicted, None if best is predicted else best, trial(*_qlora(study)),
                    None if untuned is None else float(untuned["loss"]))


def _qlora(study: Study) -> tuple[Allocation, str | None]:
    """Return QLoRA's allocation and codes, which are round-to-nearest whatever the run's are."""
    codes = None if rounding_of(study.header["config"]) == "rtn" else "rtn"
    return uniform(len(study.header["units"]), default_format(4).name, QLORA_RANK), codes
