"""Cost and rough time of a run's parts before it starts, and of every effort for the plan of ``task=memory``."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from qra_bo.config import RunConfig, make_space, named_efforts
from qra_bo.finetune.training.final import FinalSettings
from qra_bo.memory import Plan
from qra_bo.memory.cards import Card
from qra_bo.pipeline.data import TextSize, text_size
from qra_bo.pipeline.estimate import ALONE, PROFILE, basis, profile_cost, profile_seconds, shares, token_seconds
from qra_bo.report.tables import PlanRow
from qra_bo.study.comparison import QLORA, UNIFORM
from qra_bo.study.setting import FINAL, Setting, affordable_steps

TRIALS_IN_FINAL, SHORT_TRIAL = 4, 8
"""Least ratio of the final fine-tune to a trial without an advice, and the fewest steps of a trial that is advised."""
FEW_STEPS = 50
"""Optimiser steps below which a final fine-tune hardly leaves the rise of its learning rate behind."""


@dataclass(frozen=True, slots=True)
class EffortTime:
    """An effort, its limit in full-trial equivalents, and rough seconds of all but the final fine-tune, at most;
    ``None`` where a part of them is not known."""

    effort: str
    max_full_trials: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run with the text and on the device of a plan takes.

    Args:
        text: Size of the text; ``None`` where a run would fetch it first.
        final: Length of the final fine-tune in words.
        final_steps: Its optimiser steps; ``None`` where neither the text nor a limit is known.
        final_seconds: Its rough seconds; ``None`` where the speed or the steps are not known.
        basis: What the times stand on.
        efforts: The least effort first.
        advice: How to shorten a search whose trials are nearly as long as the final fine-tune; empty for others.
    """

    text: TextSize | None
    final: str
    final_steps: int | None
    final_seconds: float | None
    basis: str
    efforts: tuple[EffortTime, ...]
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the text and the times, in seconds."""
        return {"text": None if self.text is None else asdict(self.text),
                "times": {"basis": self.basis, "final": {"steps": self.final_steps, "what": self.final,
                                                         "seconds": self.final_seconds},
                          "efforts": [asdict(effort) for effort in self.efforts], "advice": self.advice}}


def make_forecast(config: RunConfig, plan: Plan) -> Forecast | None:
    """Return what a run takes; ``None`` where nothing would be trained. Reads the user's file once.

    Raises:
        DataError: If the user's file is missing or malformed.
    """
    if not config.oracle.trains:
        return None
    text = text_size(config)
    setting = Setting(config, make_space(config, plan.memory.spec), plan.memory,
                      sequences=None if text is None else text.sequences)
    each, efforts = token_seconds(setting, plan.card), named_efforts() | {config.effort.name: config.effort}
    times = []
    for effort in sorted(efforts.values(), key=lambda effort: effort.max_full_trials):
        of_effort = replace(setting, config=config.with_changes(effort=effort))
        seconds = [row.seconds for row in plan_rows(of_effort, plan.card)[:-1]]  # the last is the final fine-tune
        parts = [s for s in seconds if s is not None]
        total = sum(parts) if len(parts) == len(seconds) else None
        times.append(EffortTime(effort.name, effort.max_full_trials, total))
    steps, (what, cost) = final_steps(config, setting.sequences), _final(config, setting.sequences)
    if not cost and steps is not None:  # the most that a text of any size comes to
        what, cost = f"at most {steps:,} steps", _final_cost(config, steps)
    known = basis(setting, plan.card) + ("; gpu=NAME estimates them for a card" if each is None else "")
    return Forecast(text, what, steps, each * cost if each is not None and cost else None, known, tuple(times),
                    _advice(config, steps))


def _advice(config: RunConfig, final: int | None) -> str:
    high, low = config.fidelity.high, config.fidelity.low
    shorter = max(SHORT_TRIAL, (final or 0) // TRIALS_IN_FINAL)
    if final is None or high <= shorter:
        return ""
    lower = "" if low is None else f" fidelity.low={max(1, shorter * low // high)}"
    return (f"A trial has {high} steps, and the final fine-tune {final}. fidelity.high={shorter}{lower} makes a search "
            f"about {high / shorter:.2g} times shorter; such short trials say less of ranks.")


def plan_rows(setting: Setting, card: Card | None = None) -> list[PlanRow]:
    """Return the parts of a run by cost, and by rough time where a CPU or a known ``card`` trains."""
    config, each, seconds = setting.config, setting.full_trial_tokens, token_seconds(setting, card)
    effort, seeds, factor = config.effort, config.confirm.seeds, config.confirm.ranking_factor
    steps = confirmation_steps(setting)
    longer = each + (steps - config.fidelity.high) * config.train.step_tokens
    costs = {"profile, calibration, uniform baselines and search": setting.planned_cost,
             "references (2)": 2 * effort.references * each,
             f"confirmation ({seeds} seeds, 2 allocations, {steps} steps)": 2 * seeds * longer,
             f"the same at {len(effort.rate_factors)} other learning rates":
                 2 * seeds * len(effort.rate_factors) * longer,
             f"ranking check ({effort.ranking_top} allocations, {factor} times as long)":
                 effort.ranking_top * factor * each}
    if setting.given is not None or not effort.max_full_trials:
        costs = {}
    profile: list[PlanRow] = []
    if setting.given is None and not effort.max_full_trials:
        if config.oracle.trains and config.sensitivity.path is None:
            profile.append(PlanRow(PROFILE, cost := profile_cost(setting), profile_seconds(setting, cost, seconds)))
        trained = 1 + len({UNIFORM, QLORA} & set(effort.compare))
        costs[f"comparison on one seed ({trained} allocations)"] = trained * each if effort.compare else 0.0
    if config.oracle.trains:
        what, cost = _final(config, setting.sequences)
        if effort.compare and setting.given is None and _continues_a_trial(config, setting.sequences):
            what, cost = f"{what} of the comparison", cost - config.fidelity.high * config.train.step_tokens
        whole = cost + sum(costs.values()) + sum(row.cost for row in profile)
        share = f"; {100 * cost / whole:.0f} % of the whole" if cost and costs else ""
        costs[f"final fine-tune ({what}{share})"] = cost
    workers = config.executor.workers if setting.memory.shape.device == "cuda" else 1  # on a CPU they share its cores
    return [*profile, *(PlanRow(what, cost, None if seconds is None or not cost else
                                seconds * cost / shares(what, workers))
                        for what, cost in costs.items() if cost or what.startswith(ALONE))]


def confirmation_steps(setting: Setting) -> int:
    """Return the steps of the confirmation's trainings, see ``Study.confirmation_steps``; where the final fine-tune's
    length is not known yet, those that the effort affords."""
    config, trial = setting.config, setting.config.fidelity.high
    if config.search.length != FINAL or not config.oracle.trains:
        return trial
    return affordable_steps(setting.planned_cost, config.confirm.seeds, config.train.step_tokens, trial,
                            final_steps(config, setting.sequences))


def final_steps(config: RunConfig, sequences: float | None) -> int | None:
    """Return the optimiser steps of the final fine-tune on a training split of ``sequences``; of one that is not known
    (``None``) the most that the configuration allows, ``None`` without a limit."""
    final = FinalSettings(**config.final.model_dump())
    if sequences is None and final.steps is None:
        return final.max_steps
    return final.length(sequences or 0.0, config.train.step_sequences)


def _final(config: RunConfig, sequences: float | None) -> tuple[str, float]:
    """Return the length of the final fine-tune in words and its cost; 0.0 where its tokens are not known yet."""
    final, steps = config.final, final_steps(config, sequences)
    epochs = f"{final.epochs:g} epoch{'' if final.epochs == 1 else 's'}"
    if steps is None or (sequences is None and final.steps is None):
        limit = "" if steps is None else f", at most {steps:,} steps"
        return f"{epochs}{limit}; its tokens are known once the data is read", 0.0
    if final.steps is not None or sequences is None:
        what = f"{steps:,} steps"
    elif steps == final.max_steps:
        what = f"{steps:,} steps, the most by final.max_steps: about " \
               f"{steps * config.train.step_sequences / sequences:.2f} epochs"
    else:
        what = f"{epochs}: about {steps:,} step{'' if steps == 1 else 's'}"
    if steps < FEW_STEPS and final.steps is None:
        what += f", fewer than {FEW_STEPS}: a smaller train.accumulate or a larger final.epochs makes more of them"
    return what, _final_cost(config, steps)


def _continues_a_trial(config: RunConfig, sequences: float | None) -> bool:
    """Return whether the final fine-tune is a trial's training, validated at its end alone (``FinalRun.sources``)."""
    steps = final_steps(config, sequences)
    return steps == config.fidelity.high and FinalSettings(**config.final.model_dump()).validations(steps) == (steps,)


def _final_cost(config: RunConfig, steps: int) -> float:
    """Return the training tokens of a final fine-tune, a third of those of its validations counted."""
    validations = FinalSettings(**config.final.model_dump()).validations(steps)
    return steps * config.train.step_tokens + len(validations) * config.eval.sequences * config.train.length / 3
