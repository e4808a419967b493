"""What a run takes: its parts in training tokens, their rough time beforehand and that of the first trial, and the
command that follows a plan of the memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from qra_bo.config import RunConfig, named_efforts
from qra_bo.finetune.training.final import LEAST_APART
from qra_bo.memory import Plan, parse_format
from qra_bo.memory.advice import MIXING_PAYS, NOTHING_FITS
from qra_bo.memory.cards import Card, card_named, timed_card
from qra_bo.memory.formats import known_backend
from qra_bo.report.next_steps import OF_A_SEARCH, command
from qra_bo.report.tables import print_line
from qra_bo.report.text import rough
from qra_bo.sensitivity.profile import gradient_passes
from qra_bo.space.decoder import DecoderSpec
from qra_bo.study.cost import FORWARD_SHARE, affordable_steps, cost_of
from qra_bo.study.events import Event, FinishedTrial
from qra_bo.study.header import BY_RULE, Given
from qra_bo.study.setting import FINAL, Setting
from qra_bo.trials import TrialState
from qra_bo.utils.device import cores, multiplies_bf16, resolve_dtype

CORE_FLOPS, FP32_FLOPS = 1.2e11, 6e10
"""Rough floating-point operations a second of a core in training, SmolLM2-135M's in steps of 4 x 128 tokens on an Intel
Xeon, and of one that has to multiply in fp32, as second moments are: of Qwen2.5 1.5B 5.8e10 on an AMD EPYC."""
CARD_SHARE = 0.5
"""Assumed share of a card's dense 16-bit rate that training reaches: not measured."""
LAYER_SECONDS = 224 * 6e-6
"""Least seconds of a decoder layer's training step on a GPU: the operations that it dispatches (counted on a CPU, under
LoRA), at an assumed host time each; it bounds small models and batches."""
START_SECONDS, LEVEL_SECONDS = 10.0, 6e-8
"""Seconds of imports, model, text and exports of the smallest model, its untuned loss apart, and core seconds in which
GPTQ chooses a weight's level. Measured on a CPU."""
FINAL_PART = "final fine-tune"
FEW, FEW_EPOCHS, MOST_EPOCHS = LEAST_APART, 3, 10
"""Steps of a final fine-tune below which it is called too short; epochs beyond which steps get smaller; most epochs."""
OF_A_PLAN = ("task", "gpu", "memory.format", "out", "resume")
"""Keys that a run after a plan does without."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a run: its cost in training tokens, the workers that share it, and seconds that no token takes."""

    what: str
    tokens: float
    workers: int = 1
    seconds: float = 0.0

    def time(self, each: float) -> float:
        """Return its rough seconds at ``each`` of a token."""
        return self.seconds + each * self.tokens / self.workers


def beginning(setting: Setting) -> list[Part]:
    """Return what a run that trains does before its first training, on a CPU; of a GPU it is not known.

    GPTQ's pass takes about as long a token as training; a search counts its pass as part of the profile.
    """
    config, used = setting.config, setting.space.formats
    if setting.given is not None:
        used = tuple({parse_format(name) for name in setting.given.allocations[0].formats})
    formats = [fmt for fmt in used if not fmt.is_base]
    if not config.oracle.trains or setting.memory.shape.device != "cpu":
        return []
    level = LEVEL_SECONDS * (setting.code_tokens > 0)
    coded = sum(known_backend(fmt).ring_seconds or level for fmt in formats) * setting.memory.spec.linear_numel
    text = math.inf if setting.sequences is None else setting.sequences * config.train.length
    tokens = min(setting.code_tokens, text) if formats else 0.0
    coded += _of_moments(setting.memory.spec, tokens) / FP32_FLOPS
    passed = 0.0 if setting.given is None else tokens
    return [Part("start", _evaluated(setting, "test"), seconds=START_SECONDS)] + \
        [Part("choosing codes", passed, seconds=coded / cores())] * (coded + passed > 0)


def _of_moments(spec: DecoderSpec, tokens: float) -> float:
    """Return the operations of second moments over ``tokens`` of all inputs that linears share, and of factors."""
    routed = tokens * spec.experts_per_token / max(1, spec.n_experts)
    met = {(m.name.rpartition(".")[0], m.fused): (m.in_features, routed if m.expert else tokens) for m in spec.linears}
    return sum(width ** 2 * (reached + 2 * width) for width, reached in met.values()) * (tokens > 0)


def parts_of(setting: Setting) -> list[Part]:
    """Return what a run does, in order; a final fine-tune on a text of unknown size is left out."""
    config, each = setting.config, setting.full_trial_tokens
    effort, seeds = config.effort, config.confirm.seeds
    workers = config.executor.workers if setting.memory.shape.device == "cuda" else 1  # on a CPU they share its cores
    low, scales = config.fidelity.low or config.fidelity.high, len(config.calibrate.lr_scales)
    costs = {"tries of the learning rate": scales * setting.trial_tokens(low, "validation")} if setting.tries_rates \
        else dict[str, float]()
    if setting.given is None and effort.max_full_trials:
        references = 2 * each if effort.references and not config.stored else 0.0
        confirmation = setting.trial_tokens(confirmation_steps(setting), "test")
        costs = {"search with its profile and baselines": setting.planned_cost + references,
                 f"confirmation on {seeds} seeds": 3 * seeds * confirmation}
    elif setting.given is None:
        costs = {"profile": profile_tokens(setting) if config.oracle.trains else 0.0,
                 "check of the prediction": (2 + scales) * setting.trial_tokens(low, "test"),
                 "QLoRA": setting.trial_tokens(config.fidelity.high, "test") if effort.references else 0.0}
    parts = [Part(what, cost, workers) for what, cost in costs.items() if cost]
    steps = final_steps(config, setting.sequences)
    if config.oracle.trains and steps is not None:
        validations = len(config.final.validations(steps)) * _evaluated(setting, "validation")
        most = "at most " if config.final.steps is None and setting.sequences is None else ""
        parts.append(Part(f"{FINAL_PART} of {most}{steps:,} step{'s' * (steps > 1)}",
                          steps * config.train.step_tokens + validations + _evaluated(setting, "test"),
                          min(workers, config.final_workers)))  # one of them evaluates, which takes little beside
    return parts


def _evaluated(setting: Setting, split: str) -> float:
    """Return the cost of an evaluation, in training tokens; no split of a text has more sequences than the training."""
    sequences = min(setting.config.eval.on(split), math.inf if setting.sequences is None else setting.sequences)
    return sequences * setting.config.train.length * FORWARD_SHARE


def profile_tokens(setting: Setting) -> float:
    """Return the cost of a profile on all calibration text, in training tokens."""
    config, space = setting.config, setting.space
    size, n_layers = config.data.calibration * config.train.length, setting.memory.spec.n_layers
    quantised = sum(not fmt.is_base for fmt in space.formats)
    above = sum(1 - min(linear.layer for linear in unit.linears) / n_layers for unit in space.units)
    passes = 1 + above * quantised
    if config.profiling == "gradients":
        passes = gradient_passes(n_layers, space.n_units, quantised)
    return size + FORWARD_SHARE * (setting.code_tokens + size * passes)


def confirmation_steps(setting: Setting) -> int:
    """Return the steps of the confirmation's trainings, see ``Study.confirmation_steps``; where the final fine-tune's
    length is not known yet, those that the effort affords."""
    config, trial = setting.config, setting.config.fidelity.high
    if config.search.length != FINAL or not config.oracle.trains:
        return trial
    return affordable_steps(setting.planned_cost, config.confirm.seeds, config.train.step_tokens, trial,
                            final_steps(config, setting.sequences))


def recommended(setting: Setting, region: str | None) -> str | None:
    """Return the longest effort that costs no more before the final fine-tune than that does, ``None`` where none does
    and within a budget of a ``region`` where mixing does not pay. A longer training gains less by a mix, and a shorter
    one is not worth a search of many times its cost."""
    if region != MIXING_PAYS:
        return None
    best = None
    for name, effort in sorted(named_efforts().items(), key=lambda item: item[1].max_full_trials):
        *others, last = parts_of(replace(setting, config=setting.config.with_changes(effort=effort)))
        if last.what.startswith(FINAL_PART) and sum(part.tokens for part in others) <= last.tokens:
            best = name
    return best


def more_steps(setting: Setting) -> tuple[dict[str, str], str]:
    """Return the keys and values that give a final fine-tune of few steps more, and a sentence; neither where it needs
    none. Steps get smaller where a few repeats of the text are not enough."""
    final, train, sequences = setting.config.final, setting.config.train, setting.sequences
    steps = final_steps(setting.config, sequences)
    if not sequences or final.steps is not None or steps is None or steps >= min(FEW, final.max_steps or FEW):
        return {}, ""
    few, most = max(FEW_EPOCHS, final.epochs), max(MOST_EPOCHS, final.epochs)  # repeats are learned by heart
    accumulate = max(1, min(train.accumulate, int(few * sequences / (FEW * train.batch))))
    epochs = min(most, math.ceil(FEW * train.batch * accumulate / sequences))
    changes = {key: f"{value:g}" for key, value, now in (
        ("final.epochs", epochs, final.epochs), ("train.accumulate", accumulate, train.accumulate)) if value != now}
    total = final.with_changes(epochs=epochs).length(sequences, train.batch * accumulate)
    return changes, f"Steps of the final fine-tune: {steps}, too few to learn from; more text is best" + \
        (f", and {' '.join(map('='.join, changes.items()))} makes {total}." if changes else ".")


def final_steps(config: RunConfig, sequences: float | None) -> int | None:
    """Return the optimiser steps of the final fine-tune on a training split of ``sequences``; of one that is not known
    (``None``) the most that the configuration allows, ``None`` without a limit."""
    if sequences is None and config.final.steps is None:
        return config.final.max_steps
    return config.final.length(sequences or 0.0, config.train.step_sequences)


def card_of(setting: Setting) -> Card | None:
    """Return the card that a run trains on, by its name or as it is at hand; ``None`` for a CPU or a simulation, and
    where the table of cards lacks it."""
    if not setting.config.oracle.trains or setting.memory.shape.device == "cpu":
        return None
    if setting.config.card is not None:
        return setting.config.card
    import torch  # a plan for a CPU does without it
    index = int(setting.config.device.partition(":")[2] or 0)
    return card_named(torch.cuda.get_device_name(index)) if index < torch.cuda.device_count() else None


def token_seconds(setting: Setting, card: Card | None = None) -> float | None:
    """Return rough seconds of a training token, from the model's operations and the device's assumed rate; ``None`` for
    a simulation, and on a GPU whose ``card`` is not known."""
    spec, shape, tflops = setting.memory.spec, setting.memory.shape, None if card is None else card.tflops
    if not setting.config.oracle.trains or (shape.device != "cpu" and tflops is None):
        return None
    # Frozen linears: forward, once more under checkpointing, and backward to inputs alone; the head thrice.
    operations = (6 if shape.checkpointing else 4) * spec.active_numel + 6 * spec.vocab_size * spec.hidden_size
    if tflops is not None:
        return max(operations / (CARD_SHARE * tflops * 1e12), spec.n_layers * LAYER_SECONDS / shape.tokens)
    slow = resolve_dtype(setting.config.dtype, "cpu") == "bfloat16" and not multiplies_bf16()
    return operations / ((FP32_FLOPS if slow else CORE_FLOPS) * cores())


def times(parts: Sequence[Part], each: float | None) -> str:
    """Return the time of every part at ``each`` seconds a token, and of all; without a speed, what is missing."""
    if each is None:
        return "; ".join(part.what for part in parts) + \
            ". No times before the first trial: this card's speed is not known; gpu=NAME brings that of a named one"
    return "; ".join([*(f"{part.what}: about {rough(part.time(each))}" for part in parts),
                      f"in all about {rough(sum(part.time(each) for part in parts))}"])


def plan_times(setting: Setting, plan: Plan, effort: str | None) -> str:
    """Return rough times for a plan: by its parts of the ``effort`` that is recommended, or that the command names, and
    in all of the rest; without a search that is the training of the first budget's best simple choice."""
    config, first = setting.config, plan.budgets[0]
    card, simple = None if plan.card is None else timed_card(plan.card), first.fractional or first.best
    known, given = final_steps(config, setting.sequences) is not None, setting.given
    options = {} if given is not None else {
        f"effort={name}": replace(setting, config=config.with_changes(effort=effort))
        for name, effort in named_efforts().items()}
    if given is None and known and simple is not None:
        given = Given((simple.allocation,), "", config.adapter.lr, BY_RULE)
    chosen, advised = f"effort={config.effort.name}", ""
    if given is not None:
        options["task=finetune"] = replace(setting, given=given)
        if chosen not in options or not any(text.startswith("effort=") for text in config.words):
            advised = ", which is recommended"
            chosen = "task=finetune" if effort is None else f"effort={effort}"
    each = token_seconds(setting, card)
    parts = {name: beginning(option) + parts_of(option) for name, option in options.items()}
    slowest = "" if card == plan.card else ", the slowest of this memory in the table"
    where = "" if card is None else f" for a {card.title}{slowest}, not measured on a GPU"
    said = f"Time of {chosen}{advised if known else ' before a final fine-tune of unknown length'}, estimated from " \
        f"the number of operations{where}: {times(parts.pop(chosen), each)}"
    others = {} if each is None else {name: sum(part.time(each) for part in rest) for name, rest in parts.items()}
    listed = ", ".join(f"{name} about {rough(others[name])}" for name in sorted(others, key=others.__getitem__))
    return f"{said}. Others in all: {listed}" if listed else said


class FirstTrial:
    """Listener that prints the time of a run's ``parts`` on ``console`` once a trial has been timed."""

    def __init__(self, parts: Sequence[Part], console: Console) -> None:
        self._parts, self._console, self._waiting = parts, console, True

    def __call__(self, event: Event) -> None:
        if not self._waiting or not isinstance(event.record, FinishedTrial):
            return
        trial = event.record.trial
        tokens, seconds = cost_of(trial).tokens, trial.result.seconds - trial.result.switch_seconds
        if trial.result.state is TrialState.OK and tokens > 0 and seconds > 0:
            self._waiting = False
            print_line(self._console, f"By the first trial ({tokens / seconds:,.0f} tokens a second): "
                                      f"{times(self._parts, seconds / tokens)}")


def next_command(plan: Plan, setting: Setting, effort: str | None) -> str | None:
    """Return the command after a plan of one budget for the run of ``setting``: a search of the recommended ``effort``,
    or where mixing can pay, else the training of the best simple choice; ``None`` after several budgets, and where no
    uniform choice fits."""
    answer, words = plan.budgets[0], setting.config.words
    if len(plan.budgets) > 1 or answer.best is None or answer.advice.region == NOTHING_FITS:
        return None
    on_card = {} if plan.card is None else {"budget": "auto", "device": "cuda"}
    named = {text.lstrip("+").partition("=")[0] for text in words}
    changes: dict[str, str | None] = dict.fromkeys(OF_A_PLAN) | {k: v for k, v in on_card.items() if k not in named}
    advised = more_steps(setting)[0] or answer.advice.offer
    changes |= {key: value for key, value in advised.items() if key not in named}
    if effort is not None or (answer.advice.region == MIXING_PAYS and not setting.config.oracle.trains):
        return command(words, changes | ({} if effort is None or "effort" in named else {"effort": effort}))
    mixed = answer.fractional
    simple = f"uniform:{answer.best.bits},{answer.best.rank}" if mixed is None else mixed.what
    changes |= {"task": "finetune", "allocation": simple}
    if (bits := (mixed or answer.best).embeddings) != 16:  # what the allocation alone would not say
        changes["embeddings"] = str(bits)
    return command(words, changes, OF_A_SEARCH)
