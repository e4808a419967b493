"""The verdict of a run: whether mixing bits and ranks won, by how much, and on what evidence. Decided here alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from qra_bo.space import Allocation
from qra_bo.study.card import FAIL, PASS, UNKNOWN, WARN, Card
from qra_bo.study.events import Confirmation, Prediction
from qra_bo.study.intervals import AGAIN, LEAST_SEEDS
from qra_bo.study.state import COMPARISON, QLORA, UNIFORM, Study, loss_of, qlora_of
from qra_bo.trials import Trial
from qra_bo.utils.formatting import DASH, signed


class VerdictKind(StrEnum):
    """What is known of the best mixed allocation against the best uniform baseline; ``TEXTS`` says it in words."""

    BETTER = "better"
    AHEAD = "ahead on few seeds"
    UNRESOLVED = "not resolved"
    EXPECTED = "expected beyond what was measured"
    UNIFORM_WINS = "uniform wins"
    NOTHING_MIXED_BETTER = "nothing mixed is better"
    NO_MIXED_LOSS = "no mixed loss"
    REPLACED = "over the budget, another delivered"
    UNCONFIRMED = "not confirmed"
    ONE_SEED = "one seed"
    PREDICTED = "predicted"
    GIVEN = "given"
    NOTHING_TRAINED = "nothing trained"


class Evidence(StrEnum):
    """What a difference was measured on."""

    UNSEEN_SEEDS = "unseen seeds"
    ONE_SEED = "one seed"
    SEARCH = "search"
    PREDICTION = "prediction"


@dataclass(frozen=True, slots=True)
class Difference:
    """Loss of one allocation less that of another (nats).

    Args:
        mean: Over ``seeds`` training seeds after ``steps`` optimiser steps.
        low: Lower end of the 95 % interval, ``high`` is the upper one; ``None`` for one seed.
        over_text: Whether the interval holds for other held-out text too.
        expected: The same after ``objective_steps``, the length that the run minimises, by learned rates.
    """

    evidence: Evidence
    mean: float
    low: float | None
    high: float | None
    seeds: int
    steps: int
    expected: float
    objective_steps: int
    over_text: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a run.

    Args:
        candidate: The mixed allocation that was compared or predicted, else the best one so far.
        reference: The best uniform baseline.
        versus_uniform: Difference of candidate and reference; ``None`` where nothing was compared.
        mixed: Whether the comparison chose the candidate.
        failed: Whether the candidate failed on an unseen seed where the reference did not.
    """

    kind: VerdictKind
    candidate: Allocation | None = None
    reference: Allocation | None = None
    delivered: Allocation | None = None
    versus_uniform: Difference | None = None
    mixed: bool = False
    failed: bool = False

    @property
    def delivers_reference(self) -> bool:
        """Whether the best uniform baseline itself is delivered."""
        return self.delivered is not None and self.delivered == self.reference


def verdict_of(study: Study) -> Verdict:
    """Return the verdict on a run, ended or not."""
    if study.prediction is not None:
        return _of_prediction(study, study.prediction)
    if study.given:
        return Verdict(VerdictKind.GIVEN, delivered=study.winner)
    if study.winner is None:
        return Verdict(VerdictKind.NOTHING_TRAINED)
    return _unconfirmed(study) if study.confirmation is None else _of_confirmation(study, study.confirmation)


def _of_prediction(study: Study, p: Prediction) -> Verdict:
    first, reference, winner = p.allocations[0], p.reference, study.winner
    if winner != first or reference in (None, first):
        return Verdict(VerdictKind.PREDICTED if winner == first else VerdictKind.REPLACED, first, reference, winner)
    one = one_seed_difference(beside_prediction(study) or {})
    if one is None:
        found = Difference(Evidence.PREDICTION, p.mean, p.low, p.high, 0, p.steps, p.mean, p.steps)
        return Verdict(VerdictKind.PREDICTED, first, reference, winner, found)
    steps = study.header.high_steps
    return Verdict(VerdictKind.ONE_SEED, first, reference, winner,
                   Difference(Evidence.ONE_SEED, one, None, None, 1, steps, one, steps))


def _unconfirmed(study: Study) -> Verdict:
    best, uniform = study.incumbent, study.best_uniform
    if best is None or uniform is None:
        return Verdict(VerdictKind.UNCONFIRMED, delivered=study.winner)
    found = Difference(Evidence.SEARCH, loss_of(best) - loss_of(uniform), None, None, 1, study.header.high_steps,
                       study.value(best) - study.value(uniform), study.objective_steps)
    return Verdict(VerdictKind.UNCONFIRMED, best.allocation, uniform.allocation, study.winner, found)


def _of_confirmation(study: Study, c: Confirmation) -> Verdict:
    n, winner, mixed = len(c.train_seeds), study.winner, c.winner_kind == "mixed"
    found = None if not n else Difference(Evidence.UNSEEN_SEEDS, c.mean, c.low, c.high, n, c.steps, c.mean + c.ahead,
                                          study.objective_steps, c.over_text)
    if winner != c.winner:
        kind = VerdictKind.REPLACED
    elif c.candidate == c.reference:
        kind = VerdictKind.NO_MIXED_LOSS if study.best_mixed is None else VerdictKind.NOTHING_MIXED_BETTER
    elif c.includes_zero and c.mean * (c.mean + c.ahead) < 0 and not c.candidate_failed:
        kind = VerdictKind.EXPECTED
    elif not mixed:
        kind = VerdictKind.UNIFORM_WINS
    elif c.high >= 0:
        kind = VerdictKind.UNRESOLVED
    elif n < LEAST_SEEDS:
        kind = VerdictKind.AHEAD
    else:
        kind = VerdictKind.BETTER
    return Verdict(kind, c.candidate, c.reference, winner, found, mixed, c.candidate_failed)


_TAKE_UNIFORM = "Use the uniform allocation; mixed bits pay most where the budget is too small for 4 bits everywhere."
_COMPARE = "Run the same command with effort=quick and the same out=, which compares on more seeds."
TEXTS: dict[VerdictKind, tuple[str, str, str]] = {
    VerdictKind.BETTER: (
        PASS, "Mixed bits and ranks are better than the best uniform baseline, {reference}: {gain} nats lower loss, "
        "{perplexity} % lower perplexity.", ""),
    VerdictKind.AHEAD: (
        WARN, "Mixed bits and ranks are ahead of the best uniform baseline, {reference}, by {gain} nats on {seeds} "
        f"unseen training seeds; {LEAST_SEEDS} are needed to call that better.", "{more_seeds}"),
    VerdictKind.UNRESOLVED: (
        WARN, "Mixed bits and ranks were chosen, but their advantage over the best uniform baseline, {reference}, is "
        "not resolved: the interval of the difference includes 0.",
        "Take the uniform allocation, which is simpler, or search again with more confirm.seeds and another out=."),
    VerdictKind.EXPECTED: (
        WARN, "{chosen} was chosen: learned rates expect it ahead after {objective_steps} steps ({expected} nats for "
        "the mixed one). After {steps} steps {other} is ahead.",
        "A longer effort confirms at a longer training; confirm.seeds=0 and task=finetune compare by hand."),
    VerdictKind.UNIFORM_WINS: (
        FAIL, "A uniform baseline wins: {reference}. The best mixed allocation found {lost} on unseen training seeds.",
        _TAKE_UNIFORM),
    VerdictKind.NOTHING_MIXED_BETTER: (
        FAIL, "A uniform baseline wins: {reference}. The search found no mixed allocation that is better at its own "
        "training seed.", _TAKE_UNIFORM),
    VerdictKind.NO_MIXED_LOSS: (
        UNKNOWN, "The best uniform baseline is {reference}. No mixed allocation has a loss to compare with it.", AGAIN),
    VerdictKind.REPLACED: (
        WARN, "What was chosen, {chosen}, measured over the budget; {delivered}{role}, was delivered instead.",
        "Repeat it with a slightly smaller budget."),
    VerdictKind.UNCONFIRMED: (
        UNKNOWN, "The best allocation so far is {candidate}, the best uniform baseline {reference}; nothing was "
        "compared on unseen training seeds.", "{go_on}"),
    VerdictKind.ONE_SEED: (
        UNKNOWN, "Predicted, not searched: {delivered}. On one training seed its test loss is {below} that of the best "
        "uniform choice, {reference}; one seed decides nothing: effort=normal compares on five unseen ones.", _COMPARE),
    VerdictKind.PREDICTED: (UNKNOWN, "Predicted, not searched: {delivered}. {known}.", _COMPARE),
    VerdictKind.GIVEN: (
        UNKNOWN, "{delivered} {trained}. Nothing was searched: {reason}.",
        "Search within the same budget{forced} to compare it with other allocations."),
    VerdictKind.NOTHING_TRAINED: (UNKNOWN, "No allocation has been trained yet.", "{go_on}")}
"""Status of the card, sentence and action of every kind: the only texts of a verdict, whatever shows it."""


@dataclass(frozen=True, slots=True)
class Told:
    """A verdict in words: ``figure`` is its one number, ``evidence`` what lies behind it, ``short`` both in a cell."""

    status: str
    sentence: str
    figure: str
    evidence: str
    short: str
    action: str


def told(study: Study, v: Verdict) -> Told:
    """Return the words of a verdict of ``study``."""
    status, sentence, action = TEXTS[v.kind]
    if study.prediction is not None:
        status = UNKNOWN  # what is predicted is no finding
    if v.kind is VerdictKind.UNCONFIRMED and v.candidate == v.reference:
        sentence = "So far nothing beats the best uniform baseline, {reference}." if v.reference else \
            "There is no uniform baseline to compare with yet."
    fields = _fields(study, v)
    return Told(status, sentence.format_map(fields), *_number(v), action.format_map(fields))


def verdict_card(study: Study) -> Card:
    """Return the verdict as the first of a run's health cards."""
    words = told(study, verdict_of(study))
    numbers = f" {words.figure} ({words.evidence})." if words.figure else ""
    return Card("beats_uniform", "Better than uniform?", words.status, words.sentence + numbers, words.action)


def _fields(study: Study, v: Verdict) -> dict[str, object]:
    """Return what the texts name."""
    d, config = v.versus_uniform, study.header.config
    names = {key: DASH if a is None else study.name(a) for key, a in (
        ("candidate", v.candidate), ("reference", v.reference), ("delivered", v.delivered), ("chosen", study.chosen))}
    most = config.get("confirm", {}).get("seeds", LEAST_SEEDS)
    roles = {v.candidate: ", the mixed allocation that was compared", v.reference: ", the best uniform baseline"}
    found: dict[str, object] = {
        **names, "role": roles.get(v.delivered, ", the next best that fits"),
        "lost": "failed" if v.failed else "was not better",
        "known": "No uniform baseline is on the ladders to compare with" if v.reference is None else
        "It is the best uniform baseline: no mixed allocation is predicted to be better" if v.delivers_reference else
        f"No trial measured its difference to the best uniform baseline, {names['reference']}",
        "other": names["reference" if v.mixed else "candidate"],
        "reason": "" if study.header.given is None else study.header.given.reason,
        "trained": "has not been fine-tuned yet" if study.final is None else "was fine-tuned",
        "forced": " with search.force=true and another out=" if config.get("task") == "search" else "",
        "go_on": "Let the run end." if study.end is None else AGAIN,
        "more_seeds": AGAIN if most < LEAST_SEEDS else "Run the same command with effort=normal and the same out=, "
        f"which compares on {LEAST_SEEDS} seeds or more."}
    if d is not None:
        found |= {"gain": f"{abs(d.mean):.4f}", "perplexity": f"{100 * -math.expm1(d.mean):.1f}", "seeds": d.seeds,
                  "steps": d.steps, "objective_steps": d.objective_steps, "expected": signed(d.expected),
                  "below": "below" if d.mean < 0 else "not below"}
    return found


def _number(v: Verdict) -> tuple[str, str, str]:
    """Return figure, evidence and short form of the difference to the best uniform baseline; empty without one."""
    d = v.versus_uniform
    if d is None:
        return "", "", ""
    beyond = "" if d.expected == d.mean else f"; {signed(d.expected)} predicted for {d.objective_steps} steps"
    mean, interval = signed(d.mean), f"{signed(d.low or 0.0)} to {signed(d.high or 0.0)}"
    figure, short = f"{mean} nats", f"{mean} [{interval.replace(' to ', ', ')}]"
    if d.evidence is Evidence.UNSEEN_SEEDS:
        over = " over seeds and text" if d.over_text else ""
        return figure, f"95 % interval {interval}{over}; {d.seeds} unseen training seeds, {d.steps} steps, test " \
            f"split, paired{beyond}", f"{short} {'mixed' if v.mixed or v.delivered == v.candidate else 'uniform'}"
    if d.evidence is Evidence.PREDICTION:
        return f"{figure} predicted", f"95 % interval of the prediction {interval}; for {d.steps} steps of training", \
            f"{short} predicted, not searched"
    if d.evidence is Evidence.ONE_SEED:
        return f"{figure} on one seed", f"test split, {d.steps} steps, paired, no interval", f"{mean} on one seed"
    return figure, f"validation loss, one training seed{beyond}; not confirmed on unseen training seeds", \
        f"{mean} not confirmed"


def beside_prediction(study: Study) -> dict[str, Trial] | None:
    """Return the trials of one seed that gave a loss beside a predicted allocation, by role: ``"predicted"``,
    ``UNIFORM`` (where that is another one) and ``QLORA``, which need not fit. ``None`` where nothing was predicted, or
    nothing trained for the comparison, the untuned model included."""
    prediction = study.prediction
    trials = {(e.allocation, e.spec.codes): e for e in reversed(study.trials) if e.stage == COMPARISON and e.ok}
    if prediction is None or not (trials or study.untuned):
        return None
    first, reference = prediction.allocations[0], prediction.reference
    roles = {"predicted": (first, None), UNIFORM: (None if reference == first else reference, None),
             QLORA: qlora_of(study)}
    return {role: trials[of] for role, of in roles.items() if of in trials}


def one_seed_difference(beside: Mapping[str, Trial]) -> float | None:
    """Return the loss of the predicted allocation less that of the uniform baseline beside it (nats), if both have one.
    """
    return loss_of(beside["predicted"]) - loss_of(beside[UNIFORM]) if {"predicted", UNIFORM} <= beside.keys() else None
