"""The verdict of a run: whether mixing bits and ranks won, by how much, and on what evidence. Decided here alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from qra_bo.space import Allocation
from qra_bo.study.events import Compared, Confirmation, Prediction
from qra_bo.study.health import FAIL, PASS, UNKNOWN, WARN, Card
from qra_bo.study.intervals import AGAIN, LEAST_SEEDS
from qra_bo.study.state import Study, loss_of
from qra_bo.trials import Trial
from qra_bo.utils.formatting import DASH, signed


class VerdictKind(StrEnum):
    """What is known of the best mixed allocation against the best simple choice; ``TEXTS`` says it in words."""

    BETTER = "better"
    AHEAD = "ahead on few seeds"
    UNRESOLVED = "not resolved"
    SIMPLE_WINS = "simple wins"
    NO_MIXED_LOSS = "no mixed loss"
    REPLACED = "over the budget, another delivered"
    UNCONFIRMED = "not confirmed"
    PREDICTED = "predicted"
    NO_BENEFIT = "no benefit expected"
    GIVEN = "given"
    NOTHING_TRAINED = "nothing trained"


class Evidence(StrEnum):
    """What a difference was measured on."""

    UNSEEN_SEEDS = "unseen seeds"
    SEARCH = "search"
    PREDICTION = "prediction"


@dataclass(frozen=True, slots=True)
class Difference:
    """Loss of one allocation less that of another (nats).

    Args:
        mean: Over ``seeds`` training seeds after ``steps`` optimiser steps.
        low: Lower end of the 95 % interval, ``high`` is the upper one; ``None`` before a confirmation.
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
        reference: The best simple choice.
        uniform: The best uniform choice.
        versus_simple: Difference of candidate and reference; ``None`` where nothing was compared.
        versus_uniform: Difference of what was chosen and ``uniform``, where others than of ``versus_simple``.
        failed: Whether the candidate failed on an unseen seed where the reference did not.
    """

    kind: VerdictKind
    candidate: Allocation | None = None
    reference: Allocation | None = None
    delivered: Allocation | None = None
    versus_simple: Difference | None = None
    failed: bool = False
    uniform: Allocation | None = None
    versus_uniform: Difference | None = None

    @property
    def delivers_reference(self) -> bool:
        """Whether the best simple choice itself is delivered."""
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
    first, winner = p.allocations[0], study.winner
    if winner != first:
        return Verdict(VerdictKind.REPLACED, first, p.simple, winner, uniform=p.reference)
    simple, uniform = (None if other in (None, first) else Difference(
        Evidence.PREDICTION, found.mean, found.low, found.high, 1, p.checked_steps, found.mean, p.steps)
        for other, found in ((p.simple, p.versus_simple), (p.reference, p)))
    same = p.simple == p.reference
    return Verdict(VerdictKind.NO_BENEFIT if first == p.simple else VerdictKind.PREDICTED, first, p.simple, winner,
                   uniform if same else simple, uniform=p.reference, versus_uniform=None if same else uniform)


def _unconfirmed(study: Study) -> Verdict:
    best, simple, uniform = study.incumbent, study.best_simple, study.best_uniform
    if best is None or simple is None:
        return Verdict(VerdictKind.UNCONFIRMED, delivered=study.winner)

    def versus(other: Trial) -> Difference:
        return Difference(Evidence.SEARCH, loss_of(best) - loss_of(other), None, None, 1, study.header.high_steps,
                          study.value(best) - study.value(other), study.objective_steps)

    return Verdict(VerdictKind.UNCONFIRMED, best.allocation, simple.allocation, study.winner, versus(simple),
                   uniform=None if uniform is None else uniform.allocation,
                   versus_uniform=None if uniform is None or uniform == simple else versus(uniform))


def _of_confirmation(study: Study, c: Confirmation) -> Verdict:
    n, winner = len(c.train_seeds), study.winner

    def difference(found: Compared | None, ahead: float = 0.0) -> Difference | None:
        return None if found is None or not found.train_seeds else Difference(
            Evidence.UNSEEN_SEEDS, found.mean, found.low, found.high, len(found.train_seeds), c.steps,
            found.mean + ahead, study.objective_steps, found.over_text)

    if winner != c.winner:
        kind = VerdictKind.REPLACED
    elif c.candidate == c.reference:
        kind = VerdictKind.NO_MIXED_LOSS
    elif c.winner_kind == "mixed":
        kind = VerdictKind.AHEAD if n < LEAST_SEEDS else VerdictKind.BETTER
    else:
        kind = VerdictKind.UNRESOLVED if c.mean < 0 and not c.candidate_failed else VerdictKind.SIMPLE_WINS
    return Verdict(kind, c.candidate, c.reference, winner, difference(c, c.ahead), c.candidate_failed, c.uniform,
                   difference(c.versus_uniform))


_COMPARE = "Run the same command with effort=quick and the same out=, which compares on more seeds."
TEXTS: dict[VerdictKind, tuple[str, str, str]] = {
    VerdictKind.BETTER: (
        PASS, "{mixed} are better than the best simple choice, {reference}: {gain} lower loss"
        "{perplexity}.", ""),
    VerdictKind.AHEAD: (
        WARN, "{mixed} are ahead of the best simple choice, {reference}, by {gain} on {seeds} "
        f"unseen training seeds; {LEAST_SEEDS} are needed to call that better.", "{more_seeds}"),
    VerdictKind.UNRESOLVED: (
        WARN, "The best simple choice is taken, {reference}: the advantage of the best mixed allocation is not "
        "resolved, as the interval of the difference includes 0.",
        "Search again with more confirm.seeds and another out= to resolve it."),
    VerdictKind.SIMPLE_WINS: (
        FAIL, "The best simple choice wins: {reference}. The best mixed allocation found {lost} on unseen training "
        "seeds.", "Use the simple choice; a choice of layers pays most where the budget is too small for 4 bits "
        "everywhere."),
    VerdictKind.NO_MIXED_LOSS: (
        UNKNOWN, "The best simple choice is {reference}. No mixed allocation has a loss to compare with it.",
        "A larger effort, or another method, tries more mixed allocations."),
    VerdictKind.REPLACED: (
        WARN, "What was chosen, {chosen}, measured over the budget; {delivered}{role}, was delivered instead.",
        "Repeat it with a slightly smaller budget."),
    VerdictKind.UNCONFIRMED: (
        UNKNOWN, "The best allocation so far is {candidate}, the best simple choice {reference}; nothing was "
        "compared on unseen training seeds.", "{go_on}"),
    VerdictKind.PREDICTED: (UNKNOWN, "{expected}", _COMPARE),
    VerdictKind.NO_BENEFIT: (UNKNOWN, "{expected}", _COMPARE),
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
        sentence = "So far nothing beats the best simple choice, {reference}." if v.reference else \
            "There is no simple choice to compare with yet."
    fields = _fields(study, v)
    return Told(status, sentence.format_map(fields), *_number(v, study.header.unit), action.format_map(fields))


def verdict_card(study: Study) -> Card:
    """Return the verdict as the first of a run's health cards."""
    words = told(study, verdict_of(study))
    numbers = f" {words.figure} ({words.evidence})." if words.figure else ""
    return Card("beats_simple", "Better than a simple choice?", words.status, words.sentence + numbers, words.action)


def _fields(study: Study, v: Verdict) -> dict[str, object]:
    """Return what the texts name."""
    d, config, unit = v.versus_simple or v.versus_uniform, study.header.config, study.header.unit
    names = {key: DASH if a is None else study.name(a) for key, a in (
        ("candidate", v.candidate), ("reference", v.reference), ("delivered", v.delivered), ("chosen", study.chosen))}
    most = config.get("confirm", {}).get("seeds", LEAST_SEEDS)
    roles = {v.candidate: ", the mixed allocation that was compared", v.uniform: ", the best uniform choice",
             v.reference: ", the best simple choice"}
    found: dict[str, object] = {
        **names, "role": roles.get(v.delivered, ", the next best that fits"),
        "lost": "failed" if v.failed else "was not better",
        "expected": _expected(study, v, names), "mixed": "Mixed bits and ranks" if v.candidate is None or
        len(set(v.candidate.formats)) > 1 < len(set(v.candidate.ranks)) else
        "Mixed bits" if len(set(v.candidate.formats)) > 1 else "Mixed ranks",
        "reason": "" if study.header.given is None else study.header.given.reason,
        "trained": "has not been fine-tuned yet" if study.final is None else "was fine-tuned",
        "forced": " with search.force=true and another out=" if config.get("task") == "search" else "",
        "go_on": "Let the run end." if study.end is None else AGAIN,
        "more_seeds": AGAIN if most < LEAST_SEEDS else "Run the same command with effort=normal and the same out=, "
        f"which compares on {LEAST_SEEDS} seeds or more."}
    if d is not None:
        found |= {"gain": f"{abs(d.mean):.4f}{unit}", "seeds": d.seeds,
                  "perplexity": f", {100 * -math.expm1(d.mean):.1f} % lower perplexity" if unit else ""}
    return found


def _expected(study: Study, v: Verdict, names: Mapping[str, str]) -> str:
    """Return what a prediction expects of the best mixed allocation; empty without one."""
    if (p := study.prediction) is None:
        return ""
    if not v.delivers_reference:
        return f"Predicted, not searched: {names['delivered']}. " + (
            "No uniform choice is on the ladders to compare with." if v.reference is None else
            f"The best simple choice is {names['reference']}.")
    found = "" if p.mixed is None else f": {signed(p.mixed.mean)}{study.header.unit} predicted for the best mixed " \
        f"allocation (95 % interval {signed(p.mixed.low)} to {signed(p.mixed.high)})"
    return f"No benefit expected over the best simple choice, {names['reference']}, which is delivered{found}."


def _number(v: Verdict, unit: str) -> tuple[str, str, str]:
    """Return figure, evidence and short form of the difference to the best simple choice, and in the evidence that to
    the best uniform one where it is another; empty without any."""
    d, further = v.versus_simple or v.versus_uniform, v.versus_uniform
    if d is None:
        return "", "", ""
    figure, evidence, short = _worded(v, d, unit)
    if further is d:
        return figure, f"against the best uniform choice; {evidence}", short
    return figure, evidence if further is None else \
        f"{evidence}; against the best uniform choice {_worded(v, further, unit)[2]}", short


def _worded(v: Verdict, d: Difference, unit: str) -> tuple[str, str, str]:
    """Return figure, evidence and short form of one difference."""
    beyond = "" if d.expected == d.mean else f"; {signed(d.expected)} predicted for {d.objective_steps} steps"
    mean, interval = signed(d.mean), f"{signed(d.low or 0.0)} to {signed(d.high or 0.0)}"
    figure, short = f"{mean}{unit}", f"{mean} [{interval.replace(' to ', ', ')}]"
    if d.evidence is Evidence.UNSEEN_SEEDS:
        over = " over seeds and text" if d.over_text else ""
        return figure, f"95 % interval {interval}{over}; {d.seeds} unseen training seeds, {d.steps} steps, test " \
            f"split, paired{beyond}", f"{short} {'simple' if v.delivers_reference else 'mixed'}"
    if d.evidence is Evidence.PREDICTION:
        return f"{figure} predicted", f"95 % interval of the prediction {interval}; for {d.objective_steps} steps of " \
            f"training, checked by trainings of {d.steps} steps on one seed", f"{short} predicted, not searched"
    return figure, f"validation loss, one training seed{beyond}; not confirmed on unseen training seeds", \
        f"{mean} not confirmed"
